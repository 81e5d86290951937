// What a memory with the delta rule, or without it, is given: plain data, shared by every
// instruction set.
//
// A task is one head of one row of the batch, for all steps. Tasks are independent of each other.

#pragma once

#include "memory_task.h"

namespace jaxrnn {

// What a step takes away: nothing, what it reads at b and where it writes (a is -k), or at a.
enum Removal : int32_t { kRemovesNothing, kRemovesAtKey, kRemovesApart };

template <class T>
struct DeltaRule {
  int64_t steps, keys, values;  // T, D, E
  int64_t chunk;                // steps from one saved memory to the next
  int64_t decays;               // numbers of a step's decay: D, one for all keys, or none
  Removal removal;
  bool before, reverse;
  // [T][D], [T][D], [T][E], [T][decays], [T][D], [T][D], [T][E], and the gradients of them. There is
  // an a only if it is apart, a b only if something is taken away.
  Series q, k, v, log_w, a, b, ys;
  Series d_q, d_k, d_v, d_log_w, d_a, d_b, d_ys;
  // The memory [D][E]: at first, after the last step, and before each chunk.
  const T* state;
  T *final_state, *saved;
  int64_t saved_step;  // from one that is saved to the next
  const T* d_final;
  T* d_state;
  const char *mask, *starts;  // null where every step is real, and none is a start
  int64_t flags;              // from step to step of them
};

constexpr int64_t kBlockBytes = 128;  // of a row of a block of columns, at most

// Of a worker: what `place` in delta_rule.h hands out, then matrices.
template <class T>
inline int64_t delta_scratch(const DeltaRule<T>& s, bool backward) {
  int64_t P = padded<T>(s.keys), Q = padded<T>(s.values), line = P > Q ? P : Q;
  int64_t vectors = 3 * line + s.chunk * (5 * P + 3 * Q), memory = s.keys * Q;
  if (!backward) return vectors + memory;
  int64_t history = (s.chunk + 1) * s.values * kBlockBytes / sizeof(T);
  return vectors + s.chunk * (5 * P + 3 * Q) + 2 * memory + s.values * P + history;
}

template <class T>
struct DeltaRuleKernel {
  void (*forward)(const DeltaRule<T>&, T* scratch);
  void (*backward)(const DeltaRule<T>&, T* scratch);
};

}  // namespace jaxrnn
