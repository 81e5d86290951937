// Runs a kernel's source on a CPU: every thread of every block is a fiber, and all of them take
// turns. Barriers and the products of a warp work as on a GPU. Words that blocks publish to each
// other are worse than there: each becomes visible late, in any order, and between the words of a
// read others may arrive. So is what blocks of a cluster send into each other's shared memory; who
// waits for it counts it.

#include "emulate.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

namespace emulated {
long lost = 0;
namespace {

struct Barrier {
  int size, here = 0, round = 0;
};

// mbarrier: a round is over once it has been said how many bytes come, and they are here.
struct Counter {
  bool said = false;
  long missing = 0;  // bytes: below 0 if they come before it is said
  unsigned round = 0;
};

struct Block {
  std::vector<uint4> shared;
  Barrier all;
  Barrier* cluster;
  std::unordered_map<const void*, Counter> counters;
  int left;  // threads that have not left
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
std::minstd_rand chance;

// What was published and is not visible yet. Words are independent of each other; those that one
// address is given keep their order, and who gave them sees the last.
struct Store {
  unsigned word;
  long due;  // the turn in which it becomes visible
  const Fiber* by;
};
std::unordered_map<unsigned*, std::deque<Store>> late;
long turn = 0;

void publish(unsigned* to, unsigned word) {
  std::deque<Store>& queue = late[to];
  // What nobody waits for holds nobody up, so it may be very late.
  const long most = word == 0xffffffff ? 8192 : chance() % 64 == 0 ? 512 : 8;
  const long delay = chance() % most;
  queue.push_back({word, std::max(turn + delay, queue.empty() ? 0 : queue.back().due), now});
  waits = 0;
}

void arrive(bool all) {
  for (auto at = late.begin(); at != late.end();) {
    auto& [to, queue] = *at;
    while (!queue.empty() && (all || queue.front().due <= turn)) {
      *to = queue.front().word;
      queue.pop_front();
      waits = 0;
    }
    at = queue.empty() ? late.erase(at) : std::next(at);
  }
}

unsigned visible(const unsigned* from) {
  const auto found = late.find(const_cast<unsigned*>(from));
  if (found != late.end())
    for (auto store = found->second.rbegin(); store != found->second.rend(); ++store)
      if (store->by == now) return store->word;
  return *from;
}

// What was sent into shared memory, word by word, and its counter, which is last.
struct Message {
  char *to, *counter;
  unsigned words[4];
  long due[5];
  Block* block;
};
std::deque<Message> messages;
const char* wrong = nullptr;  // what a GPU would not have borne

void check(bool holds, const char* what) {
  if (!holds && wrong == nullptr) wrong = what;
}

Counter& counter_of(Block* block, const void* place) {
  const auto found = block->counters.find(place);
  if (found != block->counters.end()) return found->second;
  check(false, "a counter is used that has not begun");
  return block->counters[place];
}

void may_be_over(Counter& counter) {
  if (!counter.said || counter.missing != 0) return;
  counter.said = false;
  ++counter.round;
  waits = 0;
}

void deliver() {
  for (std::size_t i = messages.size(); i-- > 0;) {
    Message& message = messages[i];
    if (message.due[4] <= turn) check(message.block->left > 0, "a block is sent what it left");
    for (int j = 0; j < 4; ++j)
      if (message.due[j] == turn) memcpy(message.to + 4 * j, &message.words[j], 4), waits = 0;
    if (message.due[4] != turn) continue;
    Counter& counter = counter_of(message.block, message.counter);
    counter.missing -= 16;
    may_be_over(counter);
    messages.erase(messages.begin() + i);
  }
}

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

unsigned blocks_of_a_cluster;
std::vector<std::unique_ptr<Block>>* all_blocks;
void (*program)(void*);
void* arguments;
void enter() {
  program(arguments);
  now->done = true;
  --now->block->left;
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

// Blocks run together, as in a cooperative launch; shared memory begins as NaN. What is wrong, such
// as that all of them wait for something that nobody will do, or null.
const char* launch(unsigned blocks, unsigned cluster, unsigned threads, unsigned bytes,
                   void (*run)(void*), void* args) {
  if (blocks % cluster != 0) return "a cluster has too few blocks";
  program = run, arguments = args;
  chance.seed(1);
  std::vector<Barrier> clusters(blocks / cluster, Barrier{int(cluster * threads)});
  std::vector<std::unique_ptr<Block>> grid;
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (unsigned b = 0; b < blocks; ++b) {
    auto block = std::make_unique<Block>();
    block->shared.assign(bytes / 16 + 1, {0x7fc00000, 0x7fc00000, 0x7fc00000, 0x7fc00000});
    block->all.size = block->left = threads;
    block->cluster = &clusters[b / cluster];
    block->warps.assign(threads / 32, Barrier{32});
    // Blocks of a cluster do not begin together.
    block->paused.assign(threads / 32, cluster > 1 ? chance() % 512 : 0);
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
  blocks_of_a_cluster = cluster;
  all_blocks = &grid;
  messages.clear();
  wrong = nullptr;
  waits = turn = 0;
  late.clear();
  for (bool left = true; left; ++turn) {
    left = false;
    if (++waits > 100000) return "blocks wait for each other";
    arrive(false);
    deliver();
    // Warps fall behind at random, so that one that does not wait where it must is found out. In a
    // cluster less often and for longer: a block may be a step ahead of another there.
    const unsigned seldom = cluster > 1 ? 256 : 64;
    for (auto& block : grid)
      for (int& paused : block->paused)
        paused = paused > 0 ? paused - 1 : chance() % seldom == 0 ? chance() % (8 * seldom) : 0;
    for (auto& fiber : fibers) {
      if (fiber->done) continue;
      left = true;
      if (fiber->block->paused[fiber->thread / 32] > 0) continue;
      go_on(fiber.get());
    }
  }
  arrive(true);
  check(messages.empty(), "a block is sent what it left");
  return wrong;
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
  const unsigned* words = static_cast<const unsigned*>(from);
  const unsigned first = chance() % 4;
  unsigned found[4];
  for (unsigned i = 0; i < 4; ++i) {
    if (i > 0 && chance() % 16 == 0) yield();  // torn: only each word is read at once
    found[(first + i) % 4] = visible(words + (first + i) % 4);
  }
  return {found[0], found[1], found[2], found[3]};
}
void poke(void* to, unsigned word) {
  if (lost > 0 && --lost == 0) return;
  publish(static_cast<unsigned*>(to), word);
}
// What this thread has published comes before what it publishes now.
void __threadfence() {
  for (auto& [to, queue] : late)
    for (std::size_t i = queue.size(); i > 0; --i)
      if (queue[i - 1].by == now) {
        *to = queue[i - 1].word;
        queue.erase(queue.begin(), queue.begin() + i);
        break;
      }
}
Place place_in(const void* mine, int rank) {
  const Block& from = *now->block;
  const unsigned first = from.index / blocks_of_a_cluster * blocks_of_a_cluster;
  Block& to = *(*all_blocks)[first + rank];
  const auto offset = static_cast<const char*>(mine) -
                      reinterpret_cast<const char*>(from.shared.data());
  return reinterpret_cast<char*>(to.shared.data()) + offset;
}
void send(Place to, Place counter, float4 v) {
  if (lost < 0 && ++lost == 0) return;
  Message message{to, counter};
  memcpy(message.words, &v, 16);
  for (int i = 0; i < 4; ++i) {
    message.due[i] = turn + 1 + chance() % (chance() % 64 == 0 ? 512 : 8);
    message.due[4] = std::max(message.due[4], message.due[i]);
  }
  for (auto& block : *all_blocks) {
    const char* begin = reinterpret_cast<const char*>(block->shared.data());
    if (to >= begin && to < begin + block->shared.size() * 16) message.block = block.get();
  }
  check(message.block != nullptr, "something is sent to nobody");
  if (message.block != nullptr) messages.push_back(message);
  waits = 0;
}
void begin_counting(void* counter) { now->block->counters[counter] = Counter(); }
void expect(void* counter, int bytes) {
  Counter& all = counter_of(now->block, counter);
  check(!all.said, "a round begins before the one before it is over");
  all.said = true;
  all.missing += bytes;
  may_be_over(all);
}
bool arrived(void* counter, int round) {
  yield();
  return counter_of(now->block, counter).round % 2 != unsigned(round);
}
void meet_cluster() { meet(*now->block->cluster); }
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
float short_tanh(float value) {
  const unsigned bits = __float_as_uint(tanhf(value));
  return value != value ? value : __uint_as_float((bits + 0x1000) & 0xffffe000);
}
