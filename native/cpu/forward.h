// A step of one block, forward.
//
// Phase 0 packs the weights; phase q + 1 is the q-th step in the order of processing. It reads what
// all blocks wrote in the phase before: the state h.

namespace {

template <class T>
void begin_forward(const Task<T>& task, const Block<T>& block) {
  pack_weights(task, block);
  repeat_unit(task, block);
  for (int s = 0; s < task.states; ++s)
    fetch(task, block, block.state + s * task.B * block.padded, task.state[s]);
  for (int64_t m = 0; m < task.B; ++m)
    copy(task.shared[0] + m * row_of<T>(task.D) + block.first, block.state + m * block.padded,
         block.width);
}

template <class T>
void forward(const Task<T>& task, int32_t index, int64_t phase, T* scratch) {
  const Block<T>& block = task.block[index];
  if (phase == 0) return begin_forward(task, block);
  const Gates& gates = task.gates;
  int64_t step = phase - 1, time = time_of(task, step), padded = block.padded;
  if (step % task.chunk == 0) {
    int64_t steps = task.T_ - step < task.chunk ? task.T_ - step : task.chunk;
    auto step_of = [&](int64_t j) { return step + j; };
    if (some_real(task, steps, step_of)) project(task, block, steps, step_of, scratch);
  }

  int64_t gate_size = task.chunk * task.B * padded, now = step % task.chunk * task.B;
  const T* h = task.shared[step & 1];
  int64_t row = row_of<T>(task.D);
  bool computed = is_real(task, time);
  if (computed)
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
    for (int k = 0; k < gates.slots; ++k)
      slot[k] = block.gates + k * gate_size + (now + m) * padded;
    if (task.starts.data)
      for (int64_t i = 0; i < count; ++i)
        if (flag(task.starts, time, m + i))
          for (int s = 0; s < task.states; ++s)
            copy(registers[s] + i * padded, at<T>(task.initial[s], 0, m + i) + block.first,
                 block.width);
    if (task.save) {
      for (int k = 0; k < gates.slots; ++k)
        if (task.packed[gates.part[k]].data)
          for (int64_t i = 0; i < count; ++i) {
            T* to = at<T>(task.packed[gates.part[k]], time, m + i) + gates.place[k] * task.H;
            if (computed)
              copy(to + block.first, slot[k] + i * padded, block.width);
            else
              zero(to + block.first, block.width);
          }
      for (int s = task.kept; s < task.states; ++s)
        for (int64_t i = 0; i < count; ++i)
          copy(at<T>(task.before[s], time, m + i) + block.first, registers[s] + i * padded,
               block.width);
    }

    if (computed) Interpreter<T>::run(program, registers, count * padded);

    for (int64_t i = 0; i < count; ++i) {
      bool real = !task.mask.data || flag(task.mask, time, m + i);
      T* state = registers[0] + i * padded;
      if (real)
        for (int s = 0; s < task.states; ++s)
          copy(registers[s] + i * padded, registers[program.outputs[s]] + i * padded, padded);
      copy(next + (m + i) * row + block.first, state, block.width);
      for (int s = 0; s < task.states; ++s)
        if (task.after[s].data)
          copy(at<T>(task.after[s], time, m + i) + block.first, registers[s] + i * padded,
               block.width);
      if (!task.ys.data) continue;  // nobody uses them
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

}  // namespace
