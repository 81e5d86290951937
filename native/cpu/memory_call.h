// What the entry points of matrix memories share: a call's heads, and how they are run.

#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "memory_task.h"
#include "schedule.h"
#include "scratch.h"

namespace jaxrnn {

// How many heads a call has: those of each row of each member.
struct Heads {
  std::vector<int64_t> members;
  int64_t B = 0, N = 0;

  int64_t count() const {
    int64_t all = B * N;
    for (int64_t n : members) all *= n;
    return all;
  }
};

// One of them, and where its part is of arrays [T, B, N, ...], of those without time [B, N, ...],
// and of flags [T, B].
class Head {
 public:
  Head(const Heads& of, int64_t index)
      : of_(of), head_(index % of.N), row_(index / of.N % of.B), member_(index / of.N / of.B) {}

  Series series(const Buffer& from, int64_t size) const {
    return {place(from, size), from.storage, of_.B * of_.N * size};
  }
  template <class T>
  void numbers(T*& to, const Buffer& from, int64_t size) const {
    to = reinterpret_cast<T*>(place(from, size));
  }
  const char* flags(const Buffer& from) const {
    return from.data ? from.member(member_, of_.members) + row_ : nullptr;
  }

 private:
  char* place(const Buffer& from, int64_t size) const {
    if (!from.data) return nullptr;
    return from.member(member_, of_.members) + (row_ * of_.N + head_) * size * from.bytes;
  }

  const Heads& of_;
  int64_t head_, row_, member_;
};

// `run(head, scratch)` for each head, on as many threads as that many products are worth.
template <class T, class Run>
xla::ffi::Error each_head(const Heads& heads, double products, int64_t scratch_size,
                          xla::ffi::ThreadPool& pool, const Run& run) {
  int64_t count = heads.count(), threads = threads_of(pool.num_threads());
  if (!count) return xla::ffi::Error::Success();
  // One, if it is over before another has come.
  int workers = products * count < 5e5 ? 1 : std::min(threads, count);
  Scratch<T> scratch(workers, scratch_size);
  each_alone(
      count, workers, [&](auto work) { pool.Schedule(std::move(work)); },
      [&](int64_t i, int worker) { run(Head(heads, i), scratch.of(worker)); });
  return xla::ffi::Error::Success();
}

}  // namespace jaxrnn
