// The kernel for one instruction set; compiled once for each, with JAXRNN_ISA its name and
// JAXRNN_BYTES the size of its vectors. JAXRNN_INTERPRETER is the file that runs an update.

#include "task.h"
// in this order
#include "vector.h"
#include "operations.h"
#include "product.h"
#include "storage.h"
#include JAXRNN_INTERPRETER
#include "steps.h"

namespace jaxrnn {

extern const Isa JAXRNN_ISA;
#define TEXT(x) #x
#define NAME(x) TEXT(x)
const Isa JAXRNN_ISA = {
    NAME(JAXRNN_ISA),
    {kLanes<float>, forward<float>, backward<float>, evaluate<float>},
    {kLanes<double>, forward<double>, backward<double>, evaluate<double>},
};

}  // namespace jaxrnn
