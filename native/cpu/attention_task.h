// What attention is given: plain data, shared by every instruction set.
//
// A task is one head of one row of the batch. Its queries and keys are cut into blocks, and blocks
// into chunks. Forward, some chunk of queries meets all keys, and needs no other. Backward, a chunk
// of queries and a chunk of keys meet as a pair. Pair after pair, the gradients are summed in the
// order of the pairs' phases, whichever thread runs a pair.

#pragma once

#include "task.h"

namespace jaxrnn {

constexpr int64_t kBlock = 64;         // the queries, or keys, of a block
constexpr int64_t kForwardChunk = 512;   // the most queries that meet a block of keys, once it is read
constexpr int64_t kBackwardChunk = 256;  // queries, or keys, of a pair

template <class T>
struct Attention {
  int64_t queries, keys, width, window;  // T, S, D, and how many positions back a query sees
  int32_t storage;                       // of all arrays [T, D] and [S, D]; their rows have no use
  Array q, k, v, ys, d_ys, d_q, d_k, d_v;
  T* sums;  // the logarithm of each query's sum; null where it is not wanted
  int64_t sums_step;
  // Position and episode of each step; null where they are 0, 1, 2, ... of one episode.
  const int32_t *q_position, *q_episode, *k_position, *k_episode;
};

inline int64_t blocks_of(int64_t steps) { return (steps + kBlock - 1) / kBlock; }

inline int64_t chunks_of(int64_t steps) { return (steps + kBackwardChunk - 1) / kBackwardChunk; }

// Elements of the memory that a worker has to itself.
template <class T>
inline int64_t forward_scratch(int64_t width) {
  int64_t rows = row_of<T>(width) * kBlock;
  return 2 * width * kForwardChunk + 4 * kForwardChunk + 3 * rows + kBlock * kBlock + 6 * kBlock;
}
template <class T>
inline int64_t backward_scratch(int64_t width) {
  int64_t rows = row_of<T>(width) * kBlock;
  return 2 * width * kBackwardChunk + 2 * width * kBlock + 3 * rows + 2 * kBlock * kBlock +
         4 * kBlock + 2 * kBackwardChunk;
}

// Elements of the sums of a task's gradients.
template <class T>
inline int64_t gradient_sums(int64_t queries, int64_t keys, int64_t width) {
  return blocks_of(queries) * kBlock * width + 2 * keys * row_of<T>(width);
}

template <class T>
struct AttentionKernel {
  // Queries `first` .. `first + count - 1`, kForwardChunk of them at most.
  void (*forward)(const Attention<T>&, int64_t first, int64_t count, T* scratch);
  // In phase p, block c pairs chunk c of the keys with chunk c + p, modulo the number of chunks, of
  // the queries. The last phase writes what was summed.
  void (*backward)(const Attention<T>&, int32_t block, int64_t phase, T* sums, T* scratch);
};

// How many chunks a task has, of queries or keys, whichever are more: its blocks, and its phases
// but for the last.
inline int64_t pairs_of(int64_t queries, int64_t keys) {
  int64_t q = chunks_of(queries), k = chunks_of(keys);
  return q > k ? q : k;
}

}  // namespace jaxrnn
