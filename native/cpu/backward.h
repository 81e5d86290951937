// A step of one block, backward.
//
// Phase 0 packs the weights; phase k is the k-th step from the last, and one more phase ends it. It
// reads what all blocks wrote in the phase before: the gradient of the gates.

namespace {

// Of the G columns that the state sees, which are the last, where a gate's is.
inline int64_t state_column(const Gates& gates, int gate) {
  return gates.column[gates.recurrent[gate]] - (gates.slots - gates.count);
}

// The gradients of what enters the gates, of the first row of a step: that of a phase.
template <class T>
T* d_gates_of(const Task<T>& task, int64_t phase) {
  int64_t chunk = (phase - 1) / task.chunk, place = (phase - 1) % task.chunk;
  return task.d_gates[chunk & 1] + place * task.B * row_of<T>(task.gates.slots * task.D);
}

template <class T>
void begin_backward(const Task<T>& task, const Block<T>& block) {
  int64_t gates = task.gates.count, terms = gates * task.D;
  for (int g = 0; g < gates; ++g) {
    // Row u of r, [G, D], is what all gates' parts give back to unit u.
    pack(block.back, task.r + block.first * terms + g * task.D, task.D, 1, block.width, terms,
         block.padded, state_column(task.gates, g) * task.D, terms);
    if (task.want_x)  // of each row of w, [G, H], the task's D units
      pack(block.x_back, task.w + block.x_first * gates * task.H + g * task.H, task.D, 1,
           block.x_width, gates * task.H, block.x_padded,
           task.gates.column[task.gates.input[g]] * task.D, terms);
  }
  if (task.again) pack_weights(task, block);
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
  if (!some_real(task, steps, step_of)) return;
  project(task, block, steps, step_of, scratch);
  add_state(task, block, 0, steps * task.B,
            [&, rows = Rows(task.B)](int64_t m, int) mutable {
              auto [j, row] = rows.at(m);
              return h_before(task, step_of(j), row);
            });
}

// The products of a chunk that ended with `phase`: the gradients of the weights and of xs.
template <class T>
void end_chunk(const Task<T>& task, const Block<T>& block, int64_t phase) {
  const Gates& gates = task.gates;
  int64_t padded = block.padded, rows = ((phase - 1) % task.chunk + 1) * task.B;
  int64_t terms = gates.count * task.D, row = row_of<T>(gates.slots * task.D);
  int parity = (phase - 1) / task.chunk & 1;
  const T* d_gates = task.d_gates[parity];
  int64_t begin = (phase - 1) / task.chunk * task.chunk;  // the chunk's first phase, less one
  auto step_of = [&](int64_t j) { return task.T_ - 1 - begin - j; };
  bool computed = some_real(task, rows / task.B, step_of);
  auto weights = [&](T* to, const int32_t* slot, const T* left, int64_t count) {
    Factor<T> factor[kMaxGates];
    for (int g = 0; g < gates.count; ++g) {
      T* out = to + g * count * padded;
      factor[g] = {d_gates + gates.column[slot[g]] * task.D + block.first, out, padded, out};
    }
    product(count, padded, {rows, row_of<T>(count), row}, factor, gates.count, padded,
            [&](int64_t m, int) { return left + m; });
  };
  if (task.want_w && computed) weights(block.d_w, gates.input, task.inputs[parity], task.I);
  if (task.want_r && computed) weights(block.d_r, gates.recurrent, task.hidden[parity], task.D);
  if (!task.want_x || !block.x_width) return;
  if (!computed) zero(block.d_x, rows * block.x_padded);
  for (int64_t first = 0; computed && first < block.x_padded; first += kWidth) {
    int64_t left = block.x_padded - first, width = left < kWidth ? left : kWidth;
    Factor<T> factor = {block.x_back + first * terms, kZeros<T>, 0, block.d_x + first};
    product(rows, width, {terms, 1, 0}, &factor, 1, block.x_padded,
            [&](int64_t m, int) { return d_gates + m * row; });
  }
  for (int64_t m = 0; m < rows; ++m) {
    int64_t time = time_of(task, step_of(m / task.B));
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

// What the gates of the step after `step` give back to its state.
template <class T>
void give_back(const Task<T>& task, const Block<T>& block, int64_t phase, int64_t step) {
  const Gates& gates = task.gates;
  int64_t padded = block.padded, terms = gates.count * task.D;
  int64_t row = row_of<T>(gates.slots * task.D);
  const T* before = d_gates_of(task, phase - 1) + (gates.slots - gates.count) * task.D;
  Factor<T> factor = {block.back, block.state, padded, block.state};
  if (is_real(task, time_of(task, step + 1)))
    product(task.B, block.padded, {terms, 1, 0}, &factor, 1, padded,
            [&](int64_t m, int) { return before + m * row; });
  if (task.starts.data)
    for (int64_t m = 0; m < task.B; ++m)
      if (flag(task.starts, time_of(task, step + 1), m))
        for (int s = 0; s < task.states; ++s) {
          T* from = block.state + (s * task.B + m) * padded;
          add(block.initial + (s * task.B + m) * padded, from, padded);
          zero(from, padded);
        }
}

template <class T>
void backward(const Task<T>& task, int32_t index, int64_t phase, T* scratch) {
  const Block<T>& block = task.block[index];
  if (phase == 0) return begin_backward(task, block);
  const Gates& gates = task.gates;
  int64_t padded = block.padded, step = task.T_ - phase;
  int64_t place = (phase - 1) % task.chunk;  // of the step in its chunk
  if (phase > 1 && (place == 0 || step < 0)) end_chunk(task, block, phase - 1);

  if (phase > 1) give_back(task, block, phase, step);
  if (step < 0) return end_backward(task, block);
  if (task.again && place == 0) make_gates(task, block, step, scratch);

  const Program& program = task.program;
  int64_t most = tile_rows(block), time = time_of(task, step);
  int64_t gate_size = task.chunk * task.B * padded, now = place * task.B;
  int parity = (phase - 1) / task.chunk & 1;
  bool computed = is_real(task, time);
  T** registers = reinterpret_cast<T**>(__builtin_alloca(program.registers * sizeof(T*)));
  T* left = place_registers(program, registers, scratch);
  T **slot = registers + task.states, **unit = slot + gates.slots, **d_new = unit + task.unit;
  for (int s = 0; s < task.states; ++s, left += kTile) registers[s] = left;
  for (int k = 0; k < gates.slots; ++k, left += kTile) slot[k] = left;
  d_new[0] = left;
  for (int u = 0; u < task.unit; ++u) unit[u] = block.unit + u * kTile;
  const int32_t* d_state = program.outputs;
  const int32_t* d_slot = d_state + task.states;
  const int32_t* d_unit = d_slot + gates.slots;
  int64_t row = row_of<T>(gates.slots * task.D);
  T* d_gates = d_gates_of(task, phase) + block.first;
  for (int64_t m = 0; m < task.B; m += most) {
    int64_t count = task.B - m < most ? task.B - m : most;
    for (int k = 0; task.again && k < gates.slots; ++k)
      slot[k] = block.gates + k * gate_size + (now + m) * padded;
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
      for (int k = 0; computed && !task.again && k < gates.slots; ++k) {
        const T* from = at<T>(task.packed[gates.part[k]], time, m + i);
        copy(slot[k] + i * padded, from + gates.place[k] * task.H + block.first, block.width);
        zero(slot[k] + i * padded + block.width, padded - block.width);
      }
      for (int s = 0; s < task.states; ++s)
        if (task.after[s].data)  // also at a step that is not real: the state is held there
          add(block.state + (s * task.B + m + i) * padded,
              at<T>(task.after[s], time, m + i) + block.first, block.width);
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

    if (computed) Interpreter<T>::run(program, registers, count * padded);

    for (int64_t i = 0; i < count; ++i) {
      bool real = !task.mask.data || flag(task.mask, time, m + i);
      T* to = d_gates + (m + i) * row;
      if (real) {
        for (int s = 0; s < task.states; ++s)
          copy(block.state + (s * task.B + m + i) * padded, registers[d_state[s]] + i * padded,
               padded);
        for (int u = 0; u < task.unit; ++u)
          add(block.d_unit + (u * task.B + m + i) * padded, registers[d_unit[u]] + i * padded,
              padded);
        for (int k = 0; k < gates.slots; ++k)
          copy(to + gates.column[k] * task.D, registers[d_slot[k]] + i * padded, block.width);
        for (int g = 0; task.want_w && g < gates.count; ++g)
          add(block.d_b + g * padded, registers[d_slot[gates.input[g]]] + i * padded, padded);
      } else {
        for (int k = 0; k < gates.slots; ++k) zero(to + k * task.D, block.width);
      }
      if (task.want_w && block.x_width)
        read(task.inputs[parity] + (now + m + i) * row_of<T>(task.I) + block.x_first, task.xs.data,
             task.storage, time * task.xs.time + (m + i) * task.xs.row + block.x_first,
             block.x_width);
    }
  }
}

}  // namespace
