// Runs a kernel's source on a CPU: every thread of every block is a fiber, and all of them take
// turns. What blocks hand each other, barriers and the products of a warp work as on a GPU.

#include "emulate.h"

#include <setjmp.h>
#include <ucontext.h>

#include <memory>
#include <random>
#include <vector>

namespace emulated {
long lost = 0;
namespace {

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

Fiber* now;
jmp_buf scheduler;
long waits = 0;  // turns in which nobody got on

void yield() {
  if (_setjmp(now->place) == 0) _longjmp(scheduler, 1);
}

void go_on(Fiber* fiber) {
  now = fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber->begun) _longjmp(fiber->place, 1);
  fiber->begun = true;
  setcontext(&fiber->context);
}

void meet(Barrier& barrier) {
  const int round = barrier.round;
  waits = 0;
  if (++barrier.here == barrier.size) {
    barrier.here = 0;
    ++barrier.round;
    return;
  }
  while (barrier.round == round) yield();
}

void (*program)(void*);
void* arguments;
void enter() {
  program(arguments);
  now->done = true;
  yield();
}

float number(unsigned bits, Type type) {
  if (type == kFloat32) return __uint_as_float(bits & 0xffffe000);  // as a tf32
  if (type == kBfloat16) return __uint_as_float(bits << 16);
  _Float16 h;
  const unsigned short low = bits;
  memcpy(&h, &low, 2);
  return h;
}

unsigned bfloat16(float f) {
  unsigned v = __float_as_uint(f);
  if (f != f) return 0x7fff;
  return (v + 0x7fff + (v >> 16 & 1)) >> 16;
}

unsigned float16(float f) {
  if (f != f) return 0x7fff;
  _Float16 h = f;
  unsigned short bits;
  memcpy(&bits, &h, 2);
  return bits;
}

}  // namespace

// Blocks run together, as in a cooperative launch; shared memory begins as NaN. Whether all of
// them wait for something that nobody will do.
bool launch(unsigned blocks, unsigned threads, unsigned bytes, void (*run)(void*), void* args) {
  program = run, arguments = args;
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
    if (++waits > 20000) return true;
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
  return false;
}

uint4* shared() { return now->block->shared.data(); }
unsigned thread() { return now->thread; }
unsigned block() { return now->block->index; }

// mma.m16n8: every lane gives its part of the factors, and takes its part of the sums.
void multiply_add(float* c, const unsigned* mine, Type type) {
  const unsigned lane = now->thread % 32, warp = now->thread / 32;
  unsigned* given = now->block->given[warp].data();
  memcpy(given + 6 * lane, mine, 6 * sizeof *mine);
  __syncwarp();
  const unsigned words = type == kFloat32 ? 1 : 2;  // numbers of a register
  for (int i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
    double sum = c[i];
    for (unsigned k = 0; k < 8u * words; ++k) {
      const unsigned register_of = k / (4 * words), owner = k / words % 4, half = k % words;
      const unsigned a = given[6 * (row % 8 * 4 + owner) + row / 8 + 2 * register_of];
      const unsigned b = given[6 * (column * 4 + owner) + 4 + register_of];
      const unsigned shift = 16 * half, mask = type == kFloat32 ? 0xffffffff : 0xffff;
      sum += double(number(a >> shift & mask, type)) * number(b >> shift & mask, type);
    }
    c[i] = sum;
  }
  __syncwarp();
}

}  // namespace emulated

using namespace emulated;

void __syncthreads() { meet(now->block->all); }
void __syncwarp() { meet(now->block->warps[now->thread / 32]); }

uint4 peek(const void* from) {
  yield();
  uint4 v;
  memcpy(&v, from, 16);
  return v;
}
void poke(void* to, unsigned word) {
  waits = 0;
  if (lost > 0 && --lost == 0) return;
  memcpy(to, &word, 4);
}
float __shfl_down_sync(unsigned, float value, int by) {
  const unsigned lane = now->thread % 32, warp = now->thread / 32;
  unsigned* given = now->block->given[warp].data();
  given[lane] = __float_as_uint(value);
  __syncwarp();
  value = __uint_as_float(given[lane + by < 32 ? lane + by : lane]);
  __syncwarp();
  return value;
}

unsigned bfloat16s(float low, float high) { return bfloat16(low) | bfloat16(high) << 16; }
unsigned float16s(float low, float high) { return float16(low) | float16(high) << 16; }
float from_float16(unsigned short bits) { return number(bits, kFloat16); }
unsigned tf32(float f) {
  if (f != f) return 0x7fffffff;
  return (__float_as_uint(f) + 0x1000) & 0xffffe000;
}
