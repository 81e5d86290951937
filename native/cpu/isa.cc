// The kernel for one instruction set; compiled once for each, with JAXRNN_ISA its name and
// JAXRNN_BYTES the size of its vectors. JAXRNN_INTERPRETER is the file that runs an update.

#include "isa.h"
// in this order
#include "vector.h"
#include "operations.h"
#include "product.h"
#include "storage.h"
#include JAXRNN_INTERPRETER
#include "steps.h"
#include "forward.h"
#include "backward.h"
#include "attention.h"
#include "linear_scan.h"
#include "loop.h"
#include "memory_steps.h"
#include "matrix_memory.h"
#include "delta_rule.h"
#include "ceiling.h"

namespace {

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

namespace {

template <class T>
constexpr Kernels<T> kKernels = {
    {kLanes<T>, forward<T>, backward<T>, evaluate<T>},
    {attention_forward<T>, attention_backward<T>},
    {scan_forward<T>, scan_backward<T>},
    {loop_size<T>, loop_run<T>},
    {memory_forward<T>, memory_backward<T>},
    {delta_forward<T>, delta_backward<T>},
    multiply_adds<T>,
};

}  // namespace

namespace jaxrnn {

extern const Isa JAXRNN_ISA;
#define TEXT(x) #x
#define NAME(x) TEXT(x)
const Isa JAXRNN_ISA = {NAME(JAXRNN_ISA), kKernels<float>, kKernels<double>};

}  // namespace jaxrnn
