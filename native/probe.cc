// Can this compiler build the kernels? They take C++17, XLA's header, and vectors as GCC and Clang
// have them.

#include "xla/ffi/api/ffi.h"

typedef float Vector __attribute__((vector_size(16)));

int main(int count, char**) { return static_cast<int>((Vector{} + static_cast<float>(count))[0]); }
