// A loop over time whose step is made of parts: see loop_task.h.

namespace {

template <class T>
inline int64_t padded(int64_t width) {
  return (width + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// Where the arrays of a task are. With no memory, only counts elements.
template <class T>
struct LoopMemory {
  T** buffer;     // [rows][padded] each
  T** constants;  // of each program, a tile each
  T* zeros;       // a row as wide as the widest
  T* panels;      // packed weights, in the order of the parts
  T* tiles;       // registers of the program that runs, then its inputs
  int64_t used = 0;

  LoopMemory(const Loop& loop, T** buffers, T** constants, T* memory)
      : buffer(buffers), constants(constants) {
    auto take = [&](int64_t elements) {
      T* at = memory ? memory + used : nullptr;
      used += (elements + 31) / 32 * 32;
      return at;
    };
    int64_t widest = 0, registers = 0;
    for (int b = 0; b < loop.buffers; ++b)
      if (padded<T>(loop.widths[b]) > widest) widest = padded<T>(loop.widths[b]);
    zeros = take(widest);  // first: another task may have more rows, and leave its own in the rest
    for (int b = 0; b < loop.buffers; ++b) {
      T* at = take(loop.rows * padded<T>(loop.widths[b]));
      if (memory) buffer[b] = at;
    }
    for (int p = 0; p < loop.program_count; ++p) {
      const Program& program = loop.programs[p];
      T* at = take(static_cast<int64_t>(program.constants) * kTile);
      if (memory) constants[p] = at;
      if (program.registers > registers) registers = program.registers;
    }
    tiles = take(registers * kTile);
    int64_t packed = 0;
    for (const int32_t* part = loop.parts; part < loop.end; part = after(part))
      if (*part == kProduct) {
        const int32_t *from = part + 4, *to = from + 2 * part[3];
        for (int i = 0; i < part[3]; ++i)
          for (int j = 0; j < *to; ++j) packed += from[2 * i + 1] * padded<T>(to[2 * j + 2]);
      }
    panels = take(packed);
  }

  static const int32_t* after(const int32_t* part) {
    if (*part == kProduct) {
      part += 4 + 2 * part[3];
      return part + 1 + 2 * *part;
    }
    if (*part == kSum) return part + 3 + 2 * part[1];
    part += 4 + kTaken * part[3];
    return part + 1 + kGiven * *part;
  }
};

// The weight of a product in panels: of each stretch of its first factor, one for each stretch of
// what it gives.
template <class T>
T* pack_product(const Loop& loop, const int32_t* part, T* panel) {
  const Weight& weight = loop.weights[part[1]];
  bool transposed = part[2];
  const int32_t *from = part + 4, *to = from + 2 * part[3];
  int64_t row = 0;
  for (int i = 0; i < part[3]; ++i) {
    int64_t terms = from[2 * i + 1], column = 0;
    for (int j = 0; j < *to; ++j) {
      int64_t width = to[2 * j + 2];
      const T* data = reinterpret_cast<const T*>(weight.data);
      data += transposed ? column * weight.M + row : row * weight.M + column;
      pack(panel, data, terms, transposed ? 1 : weight.M, width, transposed ? weight.M : 1,
           padded<T>(width));
      panel += terms * padded<T>(width);
      column += width;
    }
    row += terms;
  }
  return panel;
}

template <class T>
const T* run_product(const Loop& loop, const LoopMemory<T>& memory, const int32_t* part,
                     const T* panel) {
  const int32_t *from = part + 4, *to = from + 2 * part[3];
  // One or two rows alone would wait for the sums of a panel: they take several panels together.
  int64_t most = loop.rows <= 2 ? kPanel * kLanes<T> : INT32_MAX;
  for (int i = 0; i < part[3]; ++i) {
    const T* left = memory.buffer[from[2 * i]];
    int64_t terms = from[2 * i + 1], row = padded<T>(terms), width = 0, out_row = 0;
    Factor<T> factor[kMaxGates];
    int count = 0;
    auto run = [&] {
      product(loop.rows, width, {terms, 1, 0}, factor, count, out_row,
              [&](int64_t m, int) { return left + m * row; });
      count = 0;
    };
    for (int j = 0; j < *to; ++j) {
      T* out = memory.buffer[to[2 * j + 1]];
      int64_t whole = padded<T>(to[2 * j + 2]);
      for (int64_t first = 0; first < whole; first += most) {
        int64_t wide = whole - first < most ? whole - first : most;
        if (count == kMaxGates || wide != width || whole != out_row) run();
        width = wide, out_row = whole;
        factor[count++] = {panel + first * terms, i ? out + first : memory.zeros, i ? whole : 0,
                           out + first};
      }
      panel += terms * whole;
    }
    run();
  }
  return panel;
}

template <class T>
void run_sum(const Loop& loop, const LoopMemory<T>& memory, const int32_t* part) {
  const int32_t* from = part + 2;
  T* out = memory.buffer[from[2 * part[1]]];
  for (int64_t m = 0; m < loop.rows; ++m) {
    T total = 0;
    for (int i = 0; i < part[1]; ++i) {
      int64_t width = from[2 * i + 1], k = 0;
      const T* row = memory.buffer[from[2 * i]] + m * padded<T>(width);
      typename Vector<T>::type sum = {};
      for (; k + kLanes<T> <= width; k += kLanes<T>) sum += load(row + k);
      for (int lane = 0; lane < kLanes<T>; ++lane) total += sum[lane];
      for (; k < width; ++k) total += row[k];
    }
    out[m * padded<T>(1)] = total;
  }
}

template <class T>
void run_program(const Loop& loop, const LoopMemory<T>& memory, const int32_t* part,
                 int64_t time) {
  int64_t width = part[1], whole = padded<T>(width);
  const Program& program = loop.programs[part[2]];
  const int32_t *taken = part + 4, *given = taken + kTaken * part[3] + 1, count = given[-1];
  T** registers = reinterpret_cast<T**>(__builtin_alloca(program.registers * sizeof(T*)));
  T* tile = memory.tiles;
  for (int i = 0; i < program.registers; ++i, tile += kTile)
    registers[i] = tile;
  for (int i = 0; i < program.constants; ++i)
    registers[program.inputs + i] = memory.constants[part[2]] + i * kTile;
  // Some rows, or some units of a row.
  int64_t rows = whole < kTile ? kTile / whole : 1, units = whole < kTile ? whole : kTile;
  for (int64_t first = 0; first < whole; first += units)
    for (int64_t m = 0; m < loop.rows; m += rows) {
      int64_t n = loop.rows - m < rows ? loop.rows - m : rows;
      int64_t wide = whole - first < units ? whole - first : units;
      int64_t real = width - first < wide ? width - first : wide;
      const int32_t* it = taken;
      for (int i = 0; i < program.inputs; ++i, it += kTaken) {
        bool spread = it[3];
        if (it[0] == kBuffer && !spread) {
          registers[i] = memory.buffer[it[1]] + m * whole + first;
          continue;
        }
        T* to = memory.tiles + i * kTile;
        for (int64_t row = m; row < m + n; ++row, to += wide) {
          const T* from = it[0] == kBuffer ? memory.buffer[it[1]] + row * padded<T>(1)
                                           : at<T>(loop.inputs[it[1]], time, row) + it[2];
          if (spread)
            for (int64_t k = 0; k < wide; k += kLanes<T>) store(to + k, broadcast(*from));
          else
            copy(to, from + first, real);
        }
      }
      it = given;
      for (int i = 0; i < count; ++i, it += kGiven)
        if (it[1] == kBuffer) registers[it[0]] = memory.buffer[it[2]] + m * whole + first;
      Interpreter<T>::run(program, registers, n * wide);
      it = given;
      for (int i = 0; i < count; ++i, it += kGiven)
        if (it[1] == kOutput)
          for (int64_t row = 0; row < n; ++row)
            copy(at<T>(loop.outputs[it[2]], time, m + row) + it[3] + first,
                 registers[it[0]] + row * wide, real);
    }
}

// Whether a step is real, or resets the state, in some row.
template <class T>
bool is_real(const Loop& loop, int64_t time) {
  const int32_t each[] = {loop.mask, loop.starts};
  for (int64_t m = 0; m < loop.rows; ++m)
    for (int32_t flags : each)
      if (flags >= 0 && *at<T>(loop.inputs[flags], time, m) != 0) return true;
  return loop.mask < 0;
}

template <class T>
int64_t loop_size(const Loop& loop) {
  return LoopMemory<T>(loop, nullptr, nullptr, nullptr).used;
}

template <class T>
void loop_run(const Loop& loop, T* all) {
  T** pointers = reinterpret_cast<T**>(
      __builtin_alloca((loop.buffers + loop.program_count) * sizeof(T*)));
  LoopMemory<T> memory(loop, pointers, pointers + loop.buffers, all);
  for (int p = 0; p < loop.program_count; ++p)
    for (int64_t i = 0; i < static_cast<int64_t>(loop.programs[p].constants) * kTile; ++i)
      memory.constants[p][i] = static_cast<T>(loop.programs[p].values[i / kTile]);
  T* panel = memory.panels;
  for (const int32_t* part = loop.parts; part < loop.end; part = memory.after(part))
    if (*part == kProduct) panel = pack_product(loop, part, panel);

  // What is carried, between an array and a buffer.
  auto carried = [&](auto each) {
    for (int i = 0; i < loop.carried; ++i) {
      const int32_t* it = loop.carry + kCarry * i;
      each(it, loop.widths[it[2]], padded<T>(loop.widths[it[2]]));
    }
  };
  carried([&](const int32_t* it, int64_t width, int64_t row) {
    for (int64_t m = 0; m < loop.rows; ++m)
      copy(memory.buffer[it[2]] + m * row, at<T>(loop.state[it[0]], 0, m) + it[1], width);
  });
  for (int64_t step = 0; step < loop.steps; ++step) {
    int64_t time = loop.reverse ? loop.steps - 1 - step : step;
    if (!is_real<T>(loop, time)) {
      for (int i = 0; i < loop.output_count; ++i)
        zero(at<T>(loop.outputs[i], time, 0), loop.rows * loop.outputs[i].row);
      continue;
    }
    const T* packed = memory.panels;
    for (const int32_t* part = loop.parts; part < loop.end; part = memory.after(part)) {
      if (*part == kProduct) packed = run_product(loop, memory, part, packed);
      else if (*part == kSum) run_sum(loop, memory, part);
      else run_program(loop, memory, part, time);
    }
    carried([&](const int32_t* it, int64_t, int64_t row) {
      if (it[2] != it[3]) copy(memory.buffer[it[2]], memory.buffer[it[3]], loop.rows * row);
    });
  }
  carried([&](const int32_t* it, int64_t width, int64_t row) {
    for (int64_t m = 0; m < loop.rows; ++m)
      copy(at<T>(loop.final[it[0]], 0, m) + it[1], memory.buffer[it[2]] + m * row, width);
  });
}

}  // namespace
