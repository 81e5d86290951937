// Runs a kernel's source on a CPU: every thread of every block is a fiber, and all of them take
// turns. What blocks hand each other, barriers and the products of a warp work as on a GPU.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define SHARED_MEMORY(name) uint4* name = emulated::now->block->shared.data()

struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float __uint_as_float(unsigned v) { float f; std::memcpy(&f, &v, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned v; std::memcpy(&v, &f, 4); return v; }
inline float __fdividef(float a, float b) { return a / b; }
inline int min(int a, int b) { return a < b ? a : b; }
struct Dim { unsigned x; };

namespace emulated {

struct Barrier {
  int size, here = 0, round = 0;
};

struct Block {
  std::vector<uint4> shared;
  Barrier all;
  std::vector<Barrier> warps;
  std::vector<int> paused;  // for how many turns, of each warp
  std::vector<std::vector<unsigned>> given;  // of each warp: what its lanes multiply
  unsigned index;
};

constexpr int kStack = 64 << 10;

struct Fiber {
  ucontext_t context;  // where it begins
  jmp_buf place;       // where it goes on
  std::unique_ptr<char[]> stack{new char[kStack]};
  Block* block;
  unsigned thread;
  bool begun = false, done = false;
};

inline Fiber* now;
inline jmp_buf scheduler;
inline long waits = 0;  // turns in which nobody got on

inline void yield() {
  if (_setjmp(now->place) == 0) _longjmp(scheduler, 1);
}

inline void go_on(Fiber* fiber) {
  now = fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber->begun) _longjmp(fiber->place, 1);
  fiber->begun = true;
  setcontext(&fiber->context);
}

inline void meet(Barrier& barrier) {
  const int round = barrier.round;
  waits = 0;
  if (++barrier.here == barrier.size) {
    barrier.here = 0;
    ++barrier.round;
    return;
  }
  while (barrier.round == round) yield();
}

inline std::function<void()> program;
inline void enter() {
  program();
  now->done = true;
  yield();
}

// Blocks run together, as in a cooperative launch; shared memory begins as NaN.
inline int launch(unsigned blocks, unsigned threads, unsigned bytes, std::function<void()> run) {
  program = std::move(run);
  std::vector<std::unique_ptr<Block>> grid;
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (unsigned b = 0; b < blocks; ++b) {
    auto block = std::make_unique<Block>();
    block->shared.assign(bytes / 16 + 1, {0x7fc00000, 0x7fc00000, 0x7fc00000, 0x7fc00000});
    block->all.size = threads;
    block->warps.assign(threads / 32, Barrier{32});
    block->paused.assign(threads / 32, 0);
    block->given.assign(threads / 32, std::vector<unsigned>(32 * 6));
    block->index = b;
    for (unsigned t = 0; t < threads; ++t) {
      auto fiber = std::make_unique<Fiber>();
      fiber->block = block.get();
      fiber->thread = t;
      getcontext(&fiber->context);
      fiber->context.uc_stack.ss_sp = fiber->stack.get();
      fiber->context.uc_stack.ss_size = kStack;
      fiber->context.uc_link = nullptr;
      makecontext(&fiber->context, enter, 0);
      fibers.push_back(std::move(fiber));
    }
    grid.push_back(std::move(block));
  }
  waits = 0;
  std::minstd_rand random(1);
  for (bool left = true; left;) {
    left = false;
    if (++waits > 20000) return 1;  // all of them wait for something that nobody will do
    // Warps fall behind at random, so that one that does not wait where it must is found out.
    for (auto& block : grid)
      for (int& paused : block->paused)
        paused = paused > 0 ? paused - 1 : random() % 64 == 0 ? random() % 512 : 0;
    for (auto& fiber : fibers) {
      if (fiber->done) continue;
      left = true;
      if (fiber->block->paused[fiber->thread / 32] > 0) continue;
      go_on(fiber.get());
    }
  }
  return 0;
}

inline float number(unsigned bits, int type) {  // 0 float32, 1 bfloat16, 2 float16
  if (type == 0) return __uint_as_float(bits & 0xffffe000);  // as a tf32
  if (type == 1) return __uint_as_float(bits << 16);
  _Float16 h;
  const unsigned short low = bits;
  std::memcpy(&h, &low, 2);
  return h;
}

}  // namespace emulated

#define threadIdx (Dim{emulated::now->thread})
#define blockIdx (Dim{emulated::now->block->index})
inline void __syncthreads() { emulated::meet(emulated::now->block->all); }
inline void __syncwarp() {
  emulated::meet(emulated::now->block->warps[emulated::now->thread / 32]);
}

inline uint4 peek(const void* from) {
  emulated::yield();
  uint4 v;
  std::memcpy(&v, from, 16);
  return v;
}
inline void poke(void* to, unsigned word) { emulated::waits = 0; std::memcpy(to, &word, 4); }
inline float __shfl_down_sync(unsigned, float value, int by) {
  const unsigned lane = emulated::now->thread % 32, warp = emulated::now->thread / 32;
  unsigned* given = emulated::now->block->given[warp].data();
  given[lane] = __float_as_uint(value);
  __syncwarp();
  value = __uint_as_float(given[lane + by < 32 ? lane + by : lane]);
  __syncwarp();
  return value;
}

inline unsigned bfloat16(float f) {
  unsigned v = __float_as_uint(f);
  if (f != f) return 0x7fff;
  return (v + 0x7fff + (v >> 16 & 1)) >> 16;
}
inline unsigned bfloat16s(float low, float high) { return bfloat16(low) | bfloat16(high) << 16; }
inline unsigned float16(float f) {
  if (f != f) return 0x7fff;
  _Float16 h = f;
  unsigned short bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}
inline unsigned float16s(float low, float high) { return float16(low) | float16(high) << 16; }
inline float from_float16(unsigned short bits) { return emulated::number(bits, 2); }
inline unsigned tf32(float f) {
  if (f != f) return 0x7fffffff;
  return (__float_as_uint(f) + 0x1000) & 0xffffe000;
}

// mma.m16n8: every lane gives its part of the factors, and takes its part of the sums.
inline void multiply_add(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                         unsigned b0, unsigned b1) {
#if defined(PRODUCT_BFLOAT16)
  constexpr int type = 1;
#elif defined(PRODUCT_FLOAT16)
  constexpr int type = 2;
#else
  constexpr int type = 0;
#endif
  const unsigned lane = emulated::now->thread % 32, warp = emulated::now->thread / 32;
  unsigned* given = emulated::now->block->given[warp].data();
  const unsigned mine[6] = {a0, a1, a2, a3, b0, b1};
  std::memcpy(given + 6 * lane, mine, sizeof mine);
  __syncwarp();
  constexpr int words = type ? 2 : 1;  // numbers of a register
  for (int i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
    double sum = c[i];
    for (unsigned k = 0; k < 8u * words; ++k) {
      const unsigned register_of = k / (4 * words), owner = k / words % 4, half = k % words;
      const unsigned a = given[6 * (row % 8 * 4 + owner) + row / 8 + 2 * register_of];
      const unsigned b = given[6 * (column * 4 + owner) + 4 + register_of];
      const unsigned shift = 16 * half, mask = type ? 0xffff : 0xffffffff;
      sum += double(emulated::number(a >> shift & mask, type)) *
             emulated::number(b >> shift & mask, type);
    }
    c[i] = sum;
  }
  __syncwarp();
}
