// What the kernels of matrix memories share of what they are given.

#pragma once

#include "task.h"

namespace jaxrnn {

constexpr int64_t kMemoryChunk = 64;  // steps from one saved memory to the next, at most

// A vector for each step, `step` numbers apart.
struct Series {
  char* data;  // null where there is none
  int32_t storage;
  int64_t step;
};

// Of a worker's own memory, and of those inside of it.
template <class T>
inline int64_t padded(int64_t elements) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return (elements + kLine - 1) / kLine * kLine;
}

}  // namespace jaxrnn
