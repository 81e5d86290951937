// Runs a program on a tile: each instruction on all elements before the next.

namespace {

using namespace jaxrnn;

#define EACH(function, a) each([](T x) { return static_cast<T>(::function(x)); }, a)
#define EACH2(function, a, b) each([](T x, T y) { return static_cast<T>(::function(x, y)); }, a, b)

template <class T>
struct Interpreter : Functions<T> {
  using F = Functions<T>;
  using V = typename Vector<T>::type;
  using F::splat;
  using F::vexp;
  using F::vlogistic;
  using F::vtanh;
  using F::where;

  template <class Function>
  static V each(Function function, V a) {
    for (int i = 0; i < kLanes<T>; ++i) a[i] = function(a[i]);
    return a;
  }
  template <class Function>
  static V each(Function function, V a, V b) {
    for (int i = 0; i < kLanes<T>; ++i) a[i] = function(a[i], b[i]);
    return a;
  }

  enum Name {
#define OP(name, result) name##_,
    JAXRNN_OPERATIONS(OP)
#undef OP
  };

  // `size` is a multiple of the lanes.
  static void run(const Program& program, T* const* registers, int64_t size) {
    for (int i = 0; i < program.length; ++i) {
      const Instruction& instruction = program.instructions[i];
      const T* from_a = registers[instruction.a];
      const T* from_b = registers[instruction.b];
      const T* from_c = registers[instruction.c];
      T* to = registers[instruction.to];
      switch (instruction.operation) {
#define OP(name, result)                                               \
  case name##_:                                                        \
    for (int64_t j = 0; j < size; j += kLanes<T>) {                    \
      V a = load(from_a + j), b = load(from_b + j), c = load(from_c + j); \
      (void)a, (void)b, (void)c;                                       \
      store(to + j, V(result));                                        \
    }                                                                  \
    break;
        JAXRNN_OPERATIONS(OP)
#undef OP
      }
    }
  }
};

}  // namespace
