// An LSTM's update and its derivative written by hand, in place of interpreter.h: what would be
// gained without programs? For `make programs` alone; it knows no other update.

namespace {

using namespace jaxrnn;

template <class T>
struct Interpreter : Functions<T> {
  using F = Functions<T>;
  using V = typename Vector<T>::type;
  using F::vlogistic;
  using F::vtanh;

  // Inputs: h, c, what enters i, f, g and o; backward, then the gradients of the new h and c.
  static void run(const Program& program, T* const* registers, int64_t size) {
    T* out[6];
    bool backward = program.inputs == 8;
    for (int i = 0; i < (backward ? 6 : 2); ++i) out[i] = registers[program.outputs[i]];
    for (int64_t j = 0; j < size; j += kLanes<T>) {
      V c = load(registers[1] + j);
      V i = vlogistic(load(registers[2] + j)), f = vlogistic(load(registers[3] + j));
      V g = vtanh(load(registers[4] + j)), o = vlogistic(load(registers[5] + j));
      V sum = f * c + i * g, t = vtanh(sum);
      if (!backward) {
        store(out[0] + j, V(o * t));
        store(out[1] + j, sum);
        continue;
      }
      V d_h = load(registers[6] + j);
      V d_sum = load(registers[7] + j) + d_h * o * (1 - t * t);
      store(out[0] + j, V{});
      store(out[1] + j, V(d_sum * f));
      store(out[2] + j, V(d_sum * g * i * (1 - i)));
      store(out[3] + j, V(d_sum * c * f * (1 - f)));
      store(out[4] + j, V(d_sum * i * (1 - g * g)));
      store(out[5] + j, V(d_h * t * o * (1 - o)));
    }
  }
};

}  // namespace
