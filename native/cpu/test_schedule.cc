// The schedule alone, for ThreadSanitizer: many tasks at once on few threads, some never run.

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <queue>

#include "schedule.h"

namespace {

// A pool of threads; with none of them, what is scheduled never runs.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i)
      threads_.emplace_back([this] {
        for (;;) {
          std::function<void()> work;
          {
            std::lock_guard<std::mutex> lock(mutex_);
            if (stop_ && work_.empty()) return;
            if (!work_.empty()) {
              work = std::move(work_.front());
              work_.pop();
            }
          }
          work ? work() : std::this_thread::yield();
        }
      });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }
  void schedule(std::function<void()> work) {
    std::lock_guard<std::mutex> lock(mutex_);
    work_.push(std::move(work));
  }

 private:
  std::mutex mutex_;
  std::queue<std::function<void()>> work_;
  std::vector<std::thread> threads_;
  bool stop_ = false;
};

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "test_schedule: %s\n", what);
  std::abort();
}

// Each block of a phase reads what all blocks wrote in the phase before.
void phases(Pool& pool, int blocks, int workers) {
  constexpr int64_t kPhases = 200;
  std::vector<int64_t> now(blocks, 0), next(blocks, 0);
  jaxrnn::together(
      blocks, kPhases, workers, [&](auto work) { pool.schedule(work); },
      [&](int block, int64_t phase, int worker) {
        check(worker < workers, "more workers than places");
        const std::vector<int64_t>& from = phase % 2 ? next : now;
        for (int64_t value : from) check(value == phase, "a block of an earlier phase is missing");
        (phase % 2 ? now : next)[block] = phase + 1;
      });
  for (int64_t value : kPhases % 2 ? next : now) check(value == kPhases, "a phase is missing");
}

void tasks(Pool& pool, int64_t count, int workers) {
  std::vector<int> runs(count, 0);
  jaxrnn::each_alone(
      count, workers, [&](auto work) { pool.schedule(work); },
      [&](int64_t task, int worker) {
        check(worker < workers, "more workers than places");
        ++runs[task];
      });
  for (int run : runs) check(run == 1, "a task did not run once");
}

// A helper leaves a core if there is another one, and may go back to it later.
void cores() {
#if defined(__linux__)
  cpu_set_t before, after;
  sched_getaffinity(0, sizeof before, &before);
  int here = jaxrnn::core();
  jaxrnn::leave(here);
  check(CPU_COUNT(&before) == 1 || jaxrnn::core() != here, "a helper stayed on the core");
  sched_getaffinity(0, sizeof after, &after);
  check(CPU_EQUAL(&before, &after), "a helper may no longer go where it could");
#endif
}

}  // namespace

int main() {
  cores();
  for (int threads : {0, 1, 3}) {
    Pool pool(threads);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
      callers.emplace_back([&pool, caller] {
        for (int round = 0; round < 20; ++round) {
          phases(pool, 1 + (caller + round) % 5, 1 + round % 4);
          tasks(pool, 1 + round, 1 + round % 4);
        }
      });
    for (std::thread& thread : callers) thread.join();
  }
  std::puts("test_schedule: all phases and tasks ran, in order");
}
