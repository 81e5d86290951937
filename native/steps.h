// A step of one block, forward and backward.
//
// Phase 0 packs the weights. Forward, phase q + 1 is the q-th step in the order of processing.
// Backward, phase k is the k-th step from the last, and one more phase ends it. A phase reads what
// all blocks wrote in the phase before: the state h, or the gates' gradient.

namespace {

template <class T>
inline T* at(const Array& array, int64_t time, int64_t row) {
  return reinterpret_cast<T*>(array.data) + time * array.time + row * array.row;
}

inline bool flag(const Array& array, int64_t time, int64_t row) {
  return array.data[time * array.time + row * array.row] != 0;
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
void pack_forward(const Task<T>& task, const Block<T>& block) {
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

template <class T>
void begin_forward(const Task<T>& task, const Block<T>& block) {
  pack_forward(task, block);
  repeat_unit(task, block);
  for (int s = 0; s < task.states; ++s)
    fetch(task, block, block.state + s * task.B * block.padded, task.state[s]);
  for (int64_t m = 0; m < task.B; ++m)
    copy(task.shared[0] + m * row_of<T>(task.D) + block.first, block.state + m * block.padded, block.width);
}

// Where registers are: constants first in the scratch memory, filled before, then the others;
// inputs are the caller's. Returns the scratch left over.
template <class T>
T* place_registers(const Program& program, T** registers, T* scratch) {
  for (int i = program.inputs; i < program.registers; ++i, scratch += kTile)
    registers[i] = scratch;
  return scratch;
}

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
          [&](int64_t m, int place) -> const T* {
            int64_t time = time_of(task, step_of(m / task.B)), row = m % task.B;
            int64_t offset = time * task.xs.time + row * task.xs.row;
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

template <class T>
void forward(const Task<T>& task, int32_t index, int64_t phase, T* scratch) {
  const Block<T>& block = task.block[index];
  if (phase == 0) return begin_forward(task, block);
  const Gates& gates = task.gates;
  int64_t step = phase - 1, time = time_of(task, step), padded = block.padded;
  if (step % task.chunk == 0) {
    int64_t steps = task.T_ - step < task.chunk ? task.T_ - step : task.chunk;
    project(task, block, steps, [&](int64_t j) { return step + j; }, scratch);
  }

  int64_t gate_size = task.chunk * task.B * padded, now = step % task.chunk * task.B;
  const T* h = task.shared[step & 1];
  int64_t row = row_of<T>(task.D);
  add_state(task, block, now, task.B, [&](int64_t m, int) -> const T* {
    bool start = task.starts.data && flag(task.starts, time, m);
    return start ? at<T>(task.initial[0], 0, m) : h + m * row;
  });

  // The update.
  const Program& program = task.program;
  T** registers = reinterpret_cast<T**>(__builtin_alloca(program.registers * sizeof(T*)));
  int64_t most = tile_rows(block);
  place_registers(program, registers, scratch);
  T** slot = registers + task.states;
  for (int u = 0; u < task.unit; ++u) slot[gates.slots + u] = block.unit + u * kTile;
  T* next = task.shared[(step + 1) & 1];
  for (int64_t m = 0; m < task.B; m += most) {
    int64_t count = task.B - m < most ? task.B - m : most;
    for (int s = 0; s < task.states; ++s) registers[s] = block.state + (s * task.B + m) * padded;
    for (int k = 0; k < gates.slots; ++k) slot[k] = block.gates + k * gate_size + (now + m) * padded;
    if (task.starts.data)
      for (int64_t i = 0; i < count; ++i)
        if (flag(task.starts, time, m + i))
          for (int s = 0; s < task.states; ++s)
            copy(registers[s] + i * padded, at<T>(task.initial[s], 0, m + i) + block.first,
                 block.width);
    if (task.save) {
      for (int k = 0; k < gates.slots; ++k)
        if (task.packed[gates.part[k]].data)
          for (int64_t i = 0; i < count; ++i)
            copy(at<T>(task.packed[gates.part[k]], time, m + i) + gates.place[k] * task.H +
                     block.first,
                 slot[k] + i * padded, block.width);
      for (int s = task.kept; s < task.states; ++s)
        for (int64_t i = 0; i < count; ++i)
          copy(at<T>(task.before[s], time, m + i) + block.first, registers[s] + i * padded,
               block.width);
    }

    Interpreter<T>::run(program, registers, count * padded);

    for (int64_t i = 0; i < count; ++i) {
      bool real = !task.mask.data || flag(task.mask, time, m + i);
      T* state = registers[0] + i * padded;
      if (real)
        for (int s = 0; s < task.states; ++s)
          copy(registers[s] + i * padded, registers[program.outputs[s]] + i * padded, padded);
      copy(next + (m + i) * row + block.first, state, block.width);
      int64_t offset = time * task.ys.time + (m + i) * task.ys.row + block.first;
      if (real)
        write(task.ys.data, state, task.storage, offset, block.width);
      else
        memset(task.ys.data + offset * size_of(task.storage), 0,
               block.width * size_of(task.storage));
    }
  }
  if (phase == task.T_)
    for (int s = 0; s < task.states; ++s)
      put(task, block, task.final[s], block.state + s * task.B * padded);
}

template <class T>
void begin_backward(const Task<T>& task, const Block<T>& block) {
  int64_t gates = task.gates.count, terms = gates * task.D;
  // Row u of r, [G, D], is what all gates' parts give back to unit u.
  pack(block.back, task.r + block.first * terms, terms, 1, block.width, terms, block.padded);
  if (task.want_x)
    for (int g = 0; g < gates; ++g)  // of each row of w, [G, H], the task's D units
      pack(block.x_back, task.w + block.x_first * gates * task.H + g * task.H, task.D, 1,
           block.x_width, gates * task.H, block.x_padded, g * task.D, terms);
  if (task.again) pack_forward(task, block);
  repeat_unit(task, block);
  int64_t size = task.B * block.padded;
  for (int s = 0; s < task.states; ++s) {
    fetch(task, block, block.state + s * size, task.final[s]);
    zero(block.initial + s * size, size);
  }
  zero(block.d_unit, task.unit * size);
  if (task.want_w) zero(block.d_w, gates * task.I * block.padded);
  if (task.want_w) zero(block.d_b, gates * block.padded);
  if (task.want_r) zero(block.d_r, gates * task.D * block.padded);
}

template <class T>
void end_backward(const Task<T>& task, const Block<T>& block) {
  int64_t size = task.B * block.padded, gates = task.gates.count;
  for (int s = 0; s < task.states; ++s) {
    put(task, block, task.d_state[s], block.state + s * size);
    put(task, block, task.d_initial[s], block.initial + s * size);
  }
  for (int u = 0; u < task.unit; ++u) put(task, block, task.d_unit[u], block.d_unit + u * size);
  for (int g = 0; g < gates; ++g) {
    for (int64_t i = 0; task.want_w && i < task.I; ++i)
      copy(task.d_w + (i * gates + g) * task.H + block.first,
           block.d_w + (g * task.I + i) * block.padded, block.width);
    if (task.want_w)
      copy(task.d_b + g * task.H + block.first, block.d_b + g * block.padded, block.width);
    for (int64_t k = 0; task.want_r && k < task.D; ++k)
      copy(task.d_r + (k * gates + g) * task.D + block.first,
           block.d_r + (g * task.D + k) * block.padded, block.width);
  }
}

// h before a step: in `before`, or in ys of the step before it.
template <class T>
const T* h_before(const Task<T>& task, int64_t step, int64_t row) {
  if (task.kept == 0) return at<T>(task.before[0], time_of(task, step), row);
  if (step == 0) return at<T>(task.state[0], 0, row);
  return at<T>(task.ys, time_of(task, step - 1), row);
}

// What enters the gates, again, for the chunk of steps that begins with `step` and goes back.
template <class T>
void make_gates(const Task<T>& task, const Block<T>& block, int64_t step, T* scratch) {
  int64_t steps = step + 1 < task.chunk ? step + 1 : task.chunk;
  auto step_of = [&](int64_t j) { return step - j; };
  project(task, block, steps, step_of, scratch);
  add_state(task, block, 0, steps * task.B,
            [&](int64_t m, int) { return h_before(task, step_of(m / task.B), m % task.B); });
}

// The products of a chunk that ended with `phase`: the gradients of the weights and of xs.
template <class T>
void end_chunk(const Task<T>& task, const Block<T>& block, int64_t phase) {
  const Gates& gates = task.gates;
  int64_t padded = block.padded, rows = ((phase - 1) % task.chunk + 1) * task.B;
  int64_t terms = gates.count * task.D;
  int parity = (phase - 1) / task.chunk & 1;
  auto weights = [&](T* to, const int32_t* slot, const T* left, int64_t count) {
    Factor<T> factor[kMaxGates];
    for (int g = 0; g < gates.count; ++g) {
      T* out = to + g * count * padded;
      factor[g] = {block.gates + slot[g] * task.chunk * task.B * padded, out, padded, out};
    }
    product(count, padded, {rows, row_of<T>(count), padded}, factor, gates.count, padded,
            [&](int64_t m, int) { return left + m; });
  };
  if (task.want_w) {
    weights(block.d_w, gates.input, task.inputs[parity], task.I);
    for (int g = 0; g < gates.count; ++g) {
      T* to = block.d_b + g * padded;
      const T* from = block.gates + gates.input[g] * task.chunk * task.B * padded;
      for (int64_t m = 0; m < rows; ++m, from += padded) add(to, from, padded);
    }
  }
  if (task.want_r) weights(block.d_r, gates.recurrent, task.hidden[parity], task.D);
  if (!task.want_x || !block.x_width) return;
  for (int64_t first = 0; first < block.x_padded; first += kWidth) {
    int64_t left = block.x_padded - first, width = left < kWidth ? left : kWidth;
    Factor<T> factor = {block.x_back + first * terms, kZeros<T>, 0, block.d_x + first};
    product(rows, width, {terms, 1, 0}, &factor, 1, block.x_padded,
            [&](int64_t m, int) { return task.d_gates[parity] + m * row_of<T>(terms); });
  }
  int64_t begin = (phase - 1) / task.chunk * task.chunk;  // the chunk's first phase, less one
  for (int64_t m = 0; m < rows; ++m) {
    int64_t time = time_of(task, task.T_ - 1 - begin - m / task.B);
    int64_t to = time * task.d_xs.time + m % task.B * task.d_xs.row + block.x_first;
    T* row = block.d_x + m * block.x_padded;
    if (task.add_x) {
      T* there = reinterpret_cast<T*>(task.d_xs.data) + to;
      for (int64_t i = 0; i < block.x_width; ++i) there[i] += row[i];
    } else {
      write(task.d_xs.data, row, task.d_xs_storage, to, block.x_width);
    }
  }
}

template <class T>
void backward(const Task<T>& task, int32_t index, int64_t phase, T* scratch) {
  const Block<T>& block = task.block[index];
  if (phase == 0) return begin_backward(task, block);
  const Gates& gates = task.gates;
  int64_t padded = block.padded, terms = gates.count * task.D, step = task.T_ - phase;
  int64_t place = (phase - 1) % task.chunk;  // of the step in its chunk
  if (phase > 1 && (place == 0 || step < 0)) end_chunk(task, block, phase - 1);

  if (phase > 1) {  // what the gates of the step after this one give back to h
    const T* before = task.shared[(phase - 1) & 1];
    Factor<T> factor = {block.back, block.state, padded, block.state};
    product(task.B, block.padded, {terms, 1, 0}, &factor, 1, padded,
            [&](int64_t m, int) { return before + m * row_of<T>(terms); });
    if (task.starts.data)
      for (int64_t m = 0; m < task.B; ++m)
        if (flag(task.starts, time_of(task, step + 1), m))
          for (int s = 0; s < task.states; ++s) {
            T* from = block.state + (s * task.B + m) * padded;
            add(block.initial + (s * task.B + m) * padded, from, padded);
            zero(from, padded);
          }
  }
  if (step < 0) return end_backward(task, block);
  if (task.again && place == 0) make_gates(task, block, step, scratch);

  const Program& program = task.program;
  int64_t most = tile_rows(block), time = time_of(task, step);
  int64_t gate_size = task.chunk * task.B * padded, now = place * task.B;
  int parity = (phase - 1) / task.chunk & 1;
  T** registers = reinterpret_cast<T**>(__builtin_alloca(program.registers * sizeof(T*)));
  T* left = place_registers(program, registers, scratch);
  T **slot = registers + task.states, **unit = slot + gates.slots, **d_new = unit + task.unit;
  for (int s = 0; s < task.states; ++s, left += kTile) registers[s] = left;
  d_new[0] = left;
  for (int u = 0; u < task.unit; ++u) unit[u] = block.unit + u * kTile;
  const int32_t* d_state = program.outputs;
  const int32_t* d_slot = d_state + task.states;
  const int32_t* d_unit = d_slot + gates.slots;
  T* next = task.shared[phase & 1];
  for (int64_t m = 0; m < task.B; m += most) {
    int64_t count = task.B - m < most ? task.B - m : most;
    for (int k = 0; k < gates.slots; ++k) slot[k] = block.gates + k * gate_size + (now + m) * padded;
    for (int64_t i = 0; i < count; ++i) {
      bool real = !task.mask.data || flag(task.mask, time, m + i);
      for (int s = 0; s < task.states; ++s) {
        const T* from = s == 0 ? h_before(task, step, m + i) : at<T>(task.before[s], time, m + i);
        copy(registers[s] + i * padded, from + block.first, block.width);
        zero(registers[s] + i * padded + block.width, padded - block.width);
      }
      if (task.want_r)
        copy(task.hidden[parity] + (now + m + i) * row_of<T>(task.D) + block.first,
             registers[0] + i * padded, block.width);
      for (int k = 0; !task.again && k < gates.slots; ++k) {
        const T* from = at<T>(task.packed[gates.part[k]], time, m + i);
        copy(slot[k] + i * padded, from + gates.place[k] * task.H + block.first, block.width);
        zero(slot[k] + i * padded + block.width, padded - block.width);
      }
      T* sum = d_new[0] + i * padded;
      const T* held = block.state + (m + i) * padded;
      if (task.d_ys.data && real) {
        int64_t offset = time * task.d_ys.time + (m + i) * task.d_ys.row + block.first;
        read(sum, task.d_ys.data, task.storage, offset, block.width);
        zero(sum + block.width, padded - block.width);
        add(sum, held, padded);
      } else {
        copy(sum, held, padded);
      }
    }
    for (int s = 1; s < task.states; ++s) d_new[s] = block.state + (s * task.B + m) * padded;

    Interpreter<T>::run(program, registers, count * padded);

    for (int64_t i = 0; i < count; ++i) {
      bool real = !task.mask.data || flag(task.mask, time, m + i);
      T* to_h = next + (m + i) * row_of<T>(terms) + block.first;
      T* to_x = task.d_gates[parity] + (now + m + i) * row_of<T>(terms) + block.first;
      if (real) {
        for (int s = 0; s < task.states; ++s)
          copy(block.state + (s * task.B + m + i) * padded, registers[d_state[s]] + i * padded,
               padded);
        for (int u = 0; u < task.unit; ++u)
          add(block.d_unit + (u * task.B + m + i) * padded, registers[d_unit[u]] + i * padded,
              padded);
        for (int g = 0; g < gates.count; ++g)
          copy(to_h + g * task.D, registers[d_slot[gates.recurrent[g]]] + i * padded, block.width);
        for (int g = 0; task.want_x && g < gates.count; ++g)
          copy(to_x + g * task.D, registers[d_slot[gates.input[g]]] + i * padded, block.width);
        for (int k = 0; k < gates.slots; ++k)
          copy(slot[k] + i * padded, registers[d_slot[k]] + i * padded, padded);
      } else {
        for (int g = 0; g < gates.count; ++g) zero(to_h + g * task.D, block.width);
        for (int g = 0; task.want_x && g < gates.count; ++g) zero(to_x + g * task.D, block.width);
        for (int k = 0; k < gates.slots; ++k) zero(slot[k] + i * padded, padded);
      }
      if (task.want_w && block.x_width)
        read(task.inputs[parity] + (now + m + i) * row_of<T>(task.I) + block.x_first, task.xs.data,
             task.storage, time * task.xs.time + (m + i) * task.xs.row + block.x_first,
             block.x_width);
    }
  }
}

// The program alone, on arrays of any length.
template <class T>
void evaluate(const Program& program, const T* const* inputs, T* const* outputs, int64_t count,
              int32_t results, T* scratch) {
  T** registers = reinterpret_cast<T**>(__builtin_alloca(program.registers * sizeof(T*)));
  T* left = place_registers(program, registers, scratch);
  for (int i = 0; i < program.inputs; ++i, left += kTile) {
    registers[i] = left;
    zero(left, kTile);
  }
  for (int64_t first = 0; first < count; first += kTile) {
    int64_t size = count - first < kTile ? count - first : kTile;
    for (int i = 0; i < program.inputs; ++i) copy(registers[i], inputs[i] + first, size);
    Interpreter<T>::run(program, registers, kTile);
    for (int i = 0; i < results; ++i)
      copy(outputs[i] + first, registers[program.outputs[i]], size);
  }
}

}  // namespace
