// What the linear recurrence is given: plain data, shared by every instruction set.
//
// The rows and channels of a step lie side by side, as columns. No column sees another, so a task
// is some columns next to each other, for all steps. A complex number is two columns.

#pragma once

#include "task.h"

namespace jaxrnn {

constexpr int64_t kScanColumns = 2048;  // the most columns of a task
constexpr int64_t kScanLine = 64;       // what cuts them: a multiple of a cache line's numbers
constexpr int64_t kScanArrays = 11;      // that a worker keeps for the columns of its task

// Numbers of any storage type, one after the other.
struct Numbers {
  char* data;  // null where there are none
  int32_t storage;
};

struct LinearScan {
  int64_t steps, columns;  // of a step
  int64_t width;           // the columns of a row
  int64_t rows;
  bool constant, reverse, complex;  // constant: a is [width]
  // Forward a, b and h0 come in, and hs and the final state go out. Backward a and the states
  // before each step come in, or h0 and hs in their place; beside d_hs and d_final. d_a, d_b and
  // d_h0 go out; of constant factors, d_a is a sum over time for each row.
  Numbers a, b, h0, hs, final;
  Numbers before;
  Numbers d_a, d_b, d_h0, d_hs, d_final;
  const char *mask, *starts;  // [steps][rows], null where every step is real, and none is a start
};

// A function runs columns `first` .. `first + count - 1`; `scratch` has kScanArrays * kScanColumns
// elements.
template <class T>
struct LinearScanKernel {
  void (*forward)(const LinearScan&, int64_t first, int64_t count, T* scratch);
  void (*backward)(const LinearScan&, int64_t first, int64_t count, T* scratch);
};

}  // namespace jaxrnn
