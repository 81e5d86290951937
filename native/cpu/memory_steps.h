// What the kernels of matrix memories share: the real steps of a chunk, and their vectors.

#include "memory_task.h"

namespace {

using namespace jaxrnn;

template <class T>
inline T number(const Series& series, int64_t t) {
  return reinterpret_cast<const T*>(series.data)[t * series.step];
}
template <class T>
inline void put_number(const Series& series, int64_t t, T x) {
  if (series.data) reinterpret_cast<T*>(series.data)[t * series.step] = x;
}

// The real steps of a chunk, in the order of processing.
struct Steps {
  int64_t count;
  int64_t time[kMemoryChunk];
  // Of a step: nothing is left of what was before it. The last one: of what was in the chunk.
  bool fresh[kMemoryChunk + 1];
};

// Steps `first` to `last - 1` of a kernel's task: `start()` where an episode begins, `real(n, t)`
// for the n-th that is real, `skip(t)` for each that is not.
template <class Task, class Start, class Real, class Skip>
inline void collect_steps(const Task& s, int64_t first, int64_t last, Steps& chunk, Start start,
                          Real real, Skip skip) {
  int64_t n = 0;
  bool fresh = false;
  for (int64_t k = first; k < last; ++k) {
    int64_t t = s.reverse ? s.steps - 1 - k : k;
    if (s.starts && s.starts[t * s.flags]) fresh = true, start();
    if (s.mask && !s.mask[t * s.flags]) {
      skip(t);
      continue;
    }
    chunk.time[n] = t, chunk.fresh[n] = fresh;
    real(n, t);
    ++n, fresh = false;
  }
  chunk.count = n, chunk.fresh[n] = fresh;
}

// The vectors of a chunk's steps, `stride` apart, filled up with zeros; and back.
template <class T>
void gather(T* to, const Series& from, const Steps& chunk, int64_t size, int64_t stride) {
  for (int64_t n = 0; n < chunk.count; ++n, to += stride) {
    if (from.data) read(to, from.data, from.storage, chunk.time[n] * from.step, size);
    zero(to + (from.data ? size : 0), stride - (from.data ? size : 0));
  }
}
template <class T>
void scatter(const Series& to, const T* from, const Steps& chunk, int64_t size, int64_t stride) {
  for (int64_t n = 0; to.data && n < chunk.count; ++n, from += stride)
    write(to.data, from, to.storage, chunk.time[n] * to.step, size);
}
template <class T>
void none(const Series& to, int64_t t, int64_t size) {
  const T zeros[kMemoryChunk] = {};
  for (int64_t i = 0; to.data && i < size; i += kMemoryChunk)
    write(to.data, zeros, to.storage, t * to.step + i,
          size - i < kMemoryChunk ? size - i : kMemoryChunk);
}

// `run(begin, end)` for each stretch of a chunk's steps that are of one episode, in order; and from
// the last to the first.
template <class Run>
inline void stretches(const Steps& chunk, Run run) {
  for (int64_t begin = 0, end; begin < chunk.count; begin = end) {
    for (end = begin + 1; end < chunk.count && !chunk.fresh[end];) ++end;
    run(begin, end);
  }
}
template <class Run>
inline void stretches_back(const Steps& chunk, Run run) {
  for (int64_t end = chunk.count, begin; end > 0; end = begin) {
    for (begin = end - 1; begin > 0 && !chunk.fresh[begin];) --begin;
    run(begin, end);
  }
}

// The inner product.
template <class T>
inline T dot(const T* a, const T* b, int64_t count) {
  typedef typename Vector<T>::type V;
  constexpr int L = kLanes<T>;
  V sums{};
  T sum = 0;
  int64_t i = 0;
  for (; i + L <= count; i += L) sums += load(a + i) * load(b + i);
  for (int j = 0; j < L; ++j) sum += sums[j];
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace
