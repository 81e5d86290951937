// What a loop over time is given whose step is made of parts: plain data, shared by every
// instruction set.
//
// A part is a product with a weight, a sum over units of each row, or a program. Rows are
// independent, so a task is some rows for all steps, on one thread: nothing has to meet between two
// products of a step. Values go from part to part through buffers, a row after the other, each
// padded to vectors.
//
// Masks and resets are inputs of programs like others. But a step that is real in no row, and resets
// none, carries what it was given and gives zeros, forward and backward, so it is not run.

#pragma once

#include "task.h"

namespace jaxrnn {

// How parts are written down, each as numbers, one part after the other; a list begins with its
// length.
//   kProduct, weight, transposed, list of (buffer, width) it takes, list of those it gives
//   kSum, list of (buffer, width), buffer
//   kProgram, width, program, list of (source, which, offset, spread), list of (register, source,
//     which, offset)
enum Part : int32_t { kProduct, kSum, kProgram };
enum Source : int32_t { kBuffer, kInput, kOutput };
constexpr int kTaken = 4, kGiven = 4, kCarry = 4;  // numbers of an entry

struct Weight {
  const char* data;  // [K][M]
  int64_t K, M;
};

struct Loop {
  int64_t steps, rows;
  bool reverse;
  int32_t buffers;
  const int32_t* widths;  // of the buffers
  int32_t carried;        // stretches of what is carried: (array, offset, buffer, new buffer) each
  const int32_t* carry;
  const int32_t *parts, *end;
  const Program* programs;
  int32_t program_count;
  const Weight* weights;
  const Array *state, *final;     // what is carried, [B][W]
  const Array *inputs, *outputs;  // [T][B][W]; a stride is 0 where there is no such axis
  int32_t output_count;
  int32_t mask, starts;           // which inputs they are, numbers as the others; -1 for none
};

// A function runs all steps of some rows; `memory` has as many elements as `size` says, and is
// zero.
template <class T>
struct LoopKernel {
  int64_t (*size)(const Loop&);
  void (*run)(const Loop&, T* memory);
};

}  // namespace jaxrnn
