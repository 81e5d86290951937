// What a matrix memory is given: plain data, shared by every instruction set.
//
// A task is one head of one row of the batch, for all steps. Tasks are independent of each other.

#pragma once

#include "memory_task.h"

namespace jaxrnn {

template <class T>
struct MatrixMemory {
  int64_t steps, keys, values;  // T, D, E
  bool stabilised, reverse;
  // [T][D], [T][D], [T][E], [T], [T], [T][E], [T], and the gradients of them.
  Series q, k, v, log_f, log_i, ys, ms;
  Series d_q, d_k, d_v, d_log_f, d_log_i, d_ys, d_ms;
  // The memory [D][E] and its logarithm: at first, after the last step, and before each chunk.
  const T *memory, *m;
  T *final_memory, *final_m;
  T *saved, *saved_m;
  int64_t chunk, chunk_m;  // from one that is saved to the next
  const T *d_final, *d_final_m;
  T *d_memory, *d_m;
  const char *mask, *starts;  // null where every step is real, and none is a start
  int64_t flags;              // from step to step of them
};

template <class T>
inline int64_t memory_scratch(int64_t keys, int64_t values, bool backward) {
  int64_t of_keys = padded<T>(keys), of_values = padded<T>(values);
  if (!backward) return keys * of_values + kMemoryChunk * 2 * (of_keys + of_values);
  return 2 * values * of_keys + keys * of_values + kMemoryChunk * (5 * of_keys + 3 * of_values);
}

template <class T>
struct MatrixMemoryKernel {
  void (*forward)(const MatrixMemory<T>&, T* scratch);
  void (*backward)(const MatrixMemory<T>&, T* scratch);
};

}  // namespace jaxrnn
