// What a step of one block is made of, forward and backward.

namespace {

template <class T>
inline T* at(const Array& array, int64_t time, int64_t row) {
  return reinterpret_cast<T*>(array.data) + time * array.time + row * array.row;
}

inline bool flag(const Array& array, int64_t time, int64_t row) {
  return array.data[time * array.time + row * array.row] != 0;
}

// Whether a step is real in some row; then whether one of `steps` is, of which step_of(j) is the
// j-th. The others, as those after the longest row, are not computed.
template <class T>
inline bool is_real(const Task<T>& task, int64_t time) {
  for (int64_t m = 0; task.mask.data && m < task.B; ++m)
    if (flag(task.mask, time, m)) return true;
  return !task.mask.data;
}

template <class T>
alignas(64) constexpr T kZeros[kWidth] = {};

template <class T>
inline int64_t tile_rows(const Block<T>& block) {
  return kTile / block.padded;
}

template <class T>
inline int64_t time_of(const Task<T>& task, int64_t step) {
  return task.reverse ? task.T_ - 1 - step : step;
}

template <class T, class StepOf>
bool some_real(const Task<T>& task, int64_t steps, StepOf step_of) {
  for (int64_t j = 0; j < steps; ++j)
    if (is_real(task, time_of(task, step_of(j)))) return true;
  return false;
}

// The task's units of [B, H] arrays, to and from a block's [B][padded].
template <class T>
void fetch(const Task<T>& task, const Block<T>& block, T* to, const Array& from) {
  for (int64_t m = 0; m < task.B; ++m, to += block.padded) {
    if (from.data) copy(to, at<T>(from, 0, m) + block.first, block.width);
    zero(to + (from.data ? block.width : 0), block.padded - (from.data ? block.width : 0));
  }
}

template <class T>
void put(const Task<T>& task, const Block<T>& block, const Array& to, const T* from) {
  if (!to.data) return;
  for (int64_t m = 0; m < task.B; ++m, from += block.padded)
    copy(at<T>(to, 0, m) + block.first, from, block.width);
}

template <class T>
void repeat_unit(const Task<T>& task, const Block<T>& block) {
  for (int u = 0; u < task.unit; ++u) {
    T* to = block.unit + u * kTile;
    for (int64_t m = 0; m < tile_rows(block); ++m, to += block.padded) {
      copy(to, task.unit_weights[u] + block.first, block.width);
      zero(to + block.width, block.padded - block.width);
    }
  }
}

template <class T>
void pack_weights(const Task<T>& task, const Block<T>& block) {
  int gates = task.gates.count;
  for (int g = 0; g < gates; ++g) {
    int64_t from = g * task.H + block.first;
    pack(block.w + g * task.I * block.padded, task.w + from, task.I, gates * task.H, block.width,
         1, block.padded);
    pack(block.r + g * task.D * block.padded, task.r + g * task.D + block.first, task.D,
         gates * task.D, block.width, 1, block.padded);
    copy(block.bias + g * block.padded, task.b + from, block.width);
    zero(block.bias + g * block.padded + block.width, block.padded - block.width);
  }
}

// Where registers are: constants first in the scratch memory, filled before, then the others;
// inputs are the caller's. Returns the scratch left over.
template <class T>
T* place_registers(const Program& program, T** registers, T* scratch) {
  for (int i = program.inputs; i < program.registers; ++i, scratch += kTile)
    registers[i] = scratch;
  return scratch;
}

// Of the m-th row of some steps, its step and its row there. A product asks for one row after the
// other, so nothing is divided: that took as long as a fiftieth of the product.
class Rows {
 public:
  explicit Rows(int64_t batch) : batch_(batch) {}
  struct Place {
    int64_t step, row;
  };
  Place at(int64_t m) {
    if (m == 0) next_ = {0, 0};
    Place now = next_;
    if (++next_.row == batch_) next_ = {now.step + 1, 0};
    return now;
  }

 private:
  int64_t batch_;
  Place next_{0, 0};
};

// The input's part of the gates, for `steps` steps; step_of(j) is the j-th of them.
template <class T, class StepOf>
void project(const Task<T>& task, const Block<T>& block, int64_t steps, StepOf step_of,
             T* scratch) {
  T* converted = scratch + scratch_size(task.program, 0);
  Factor<T> factor[kMaxGates];
  for (int g = 0; g < task.gates.count; ++g)
    factor[g] = {block.w + g * task.I * block.padded, block.bias + g * block.padded, 0,
                 block.gates + task.gates.input[g] * task.chunk * task.B * block.padded};
  product(steps * task.B, block.padded, {task.I, 1, 0}, factor, task.gates.count, block.padded,
          [&, rows = Rows(task.B)](int64_t m, int place) mutable -> const T* {
            auto [j, row] = rows.at(m);
            int64_t offset = time_of(task, step_of(j)) * task.xs.time + row * task.xs.row;
            if (task.storage == kSame<T>) return reinterpret_cast<T*>(task.xs.data) + offset;
            read(converted + place * task.I, task.xs.data, task.storage, offset, task.I);
            return converted + place * task.I;
          });
}

// The state's part of them for `rows` rows from `first` on, added where the update sees only the
// sum; h_of(m) is the state of the m-th.
template <class T, class HOf>
void add_state(const Task<T>& task, const Block<T>& block, int64_t first, int64_t rows, HOf h_of) {
  const Gates& gates = task.gates;
  Factor<T> factor[kMaxGates];
  for (int g = 0; g < gates.count; ++g) {
    int slot = gates.recurrent[g];
    T* to = block.gates + (slot * task.chunk * task.B + first) * block.padded;
    bool sum = gates.input[g] == slot;
    factor[g] = {block.r + g * task.D * block.padded, sum ? to : kZeros<T>, sum ? block.padded : 0,
                 to};
  }
  product(rows, block.padded, {task.D, 1, 0}, factor, gates.count, block.padded, h_of);
}

}  // namespace
