// Runs the phases of tasks on whoever has arrived.
//
// The caller works, and helpers from a thread pool join if and when the pool runs them; nobody
// waits for a helper that has not come. Within a task, a block of a phase is claimed by one
// worker. Each begins with blocks of its own, so that their weights stay in its core's cache, and
// takes what others have not begun only when it would have to wait: a worker that lost its core
// holds up the others for the one block it is in, not for the rest of the task.
//
// A system that wakes a helper may well put it on the core of the caller, where it waits for the
// caller or stops it, for milliseconds. So the caller lets it begin, and the helper leaves.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace jaxrnn {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// XLA's own programs on a CPU take numbers too small to be normal as 0, and so do we, whichever
// thread runs a block: else the result would depend on the thread.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(before_ | (1ull << 24)));
  }
  ~FlushSubnormals() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  uint64_t before_;
#endif
};

// The core this thread is on, and to another one if it is on `taken`.
#if defined(__linux__)
inline int core() { return sched_getcpu(); }

inline void leave(int taken) {
  cpu_set_t allowed, others;
  if (core() != taken || sched_getaffinity(0, sizeof allowed, &allowed)) return;
  others = allowed;
  CPU_CLR(taken, &others);
  if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
    sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
inline int core() { return -1; }
inline void leave(int) {}
#endif

// Waits until `ready()`: briefly for a worker that is about to finish, then giving up the core.
template <class Ready>
void wait(Ready ready) {
  for (int spins = 0; !ready(); ++spins) {
    if (spins < 2000)
      pause();
    else
      std::this_thread::yield();
  }
}

// `run(task, worker)` for every task, each on one worker. `schedule(f)` runs f on another thread.
template <class Schedule, class Run>
void each_alone(int64_t tasks, int workers, Schedule schedule, const Run& run) {
  struct Control {
    std::atomic<int64_t> next{0}, done{0};
    std::atomic<int> present{0};
  };
  auto control = std::make_shared<Control>();
  auto work = [control, tasks, caller = core(), run = &run](bool helper) {
    if (helper) leave(caller);
    int worker = control->present.fetch_add(1);
    FlushSubnormals flush;
    for (int64_t task; (task = control->next.fetch_add(1)) < tasks; control->done.fetch_add(1))
      (*run)(task, worker);
  };
  for (int i = 1; i < workers; ++i) schedule([work] { work(true); });
  if (workers > 1) std::this_thread::yield();
  work(false);
  wait([&] { return control->done.load(std::memory_order_acquire) == tasks; });
}

// `run(block, phase, worker)` for every block of every phase, phase after phase.
template <class Schedule, class Run>
void together(int blocks, int64_t phases, int workers, Schedule schedule, const Run& run) {
  if (workers == 1) {
    FlushSubnormals flush;
    for (int64_t phase = 0; phase < phases; ++phase)
      for (int block = 0; block < blocks; ++block) run(block, phase, 0);
    return;
  }
  struct alignas(64) Claim {
    std::atomic<int64_t> phase{0};  // the first phase in which nobody has claimed the block
  };
  struct Control {
    explicit Control(int blocks) : claims(blocks) {}
    std::vector<Claim> claims;
    alignas(64) std::atomic<int64_t> done{0};  // blocks of all phases
    alignas(64) std::atomic<int> present{0};
  };
  auto control = std::make_shared<Control>(blocks);
  auto work = [control, blocks, phases, caller = core(), run = &run](bool helper) {
    if (helper) leave(caller);
    Control& c = *control;
    int worker = c.present.fetch_add(1);
    FlushSubnormals flush;
    auto take = [&](int first, int last, int64_t phase) {
      for (int block = first; block < last; ++block) {
        std::atomic<int64_t>& claim = c.claims[block].phase;
        int64_t expected = phase;
        if (claim.load(std::memory_order_relaxed) == phase &&
            claim.compare_exchange_strong(expected, phase + 1, std::memory_order_acq_rel)) {
          (*run)(block, phase, worker);
          c.done.fetch_add(1, std::memory_order_acq_rel);
        }
      }
    };
    for (;;) {
      int64_t phase = c.done.load(std::memory_order_acquire) / blocks;
      if (phase >= phases) return;
      int present = c.present.load(std::memory_order_relaxed);
      take(blocks * worker / present, blocks * (worker + 1) / present, phase);
      auto over = [&] { return c.done.load(std::memory_order_acquire) >= (phase + 1) * blocks; };
      if (present > 1)
        for (int spins = 0; spins < 100 && !over(); ++spins) pause();
      if (over()) continue;
      take(0, blocks, phase);
      wait(over);
    }
  };
  for (int i = 1; i < workers; ++i) schedule([work] { work(true); });
  std::this_thread::yield();
  work(false);
}

}  // namespace jaxrnn
