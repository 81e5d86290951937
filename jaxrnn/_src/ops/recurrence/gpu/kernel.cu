// The recurrence on a GPU: all steps in one launch, forward or backward.
//
// A group of blocks runs one tile of rows of one head. Each block has some of the head's units: it
// holds their recurrent weights in registers and shared memory, and their states in registers. At
// each step it needs what all blocks of its group made of the step before: h going forward, the
// gates' gradients going backward. Every step has a place of its own for that in device memory, the
// exchange, which was filled with EMPTY before the launch. Who needs a word reads it until it is
// not empty: the data are their own flag, there is no barrier between blocks, and a step costs one
// trip through the L2 cache.
//
// No wait is endless. A thread that has polled MOST_POLLS times in vain raises a flag before the
// exchange and tells the host; whoever waits looks at the flag now and then. From then on nobody
// waits: all blocks run to their end with whatever they find, and write NaN over all they made.
//
// What is compiled with this file: the constants in capitals, which `source.py` writes before it,
// and `update` or `derivative`, an elementwise function as straight code.

typedef unsigned int u32;
#ifdef EMULATED
#include EMULATED  // tests: all of this for a CPU
#else

// Memory that other blocks write to, past the L1 cache, which knows nothing of them.
__device__ __forceinline__ uint4 peek(const void* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
  return v;
}

__device__ __forceinline__ void poke(void* to, u32 word) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" :: "l"(to), "r"(word) : "memory");
}

// A word for the host, which has the memory mapped.
__device__ __forceinline__ void tell(void* to, u32 word) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" :: "l"(to), "r"(word) : "memory");
}

// [16, K] times [K, 8], of 32 bytes of K; registers as PTX has them for mma.m16n8.
__device__ __forceinline__ void multiply_add(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3,
                                             u32 b0, u32 b1) {
#define MULTIPLY_ADD(SHAPE)                                                                  \
  asm("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "            \
      "{%0, %1, %2, %3};"                                                                    \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                       \
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
#if defined(PRODUCT_BFLOAT16)
  MULTIPLY_ADD("m16n8k16.row.col.f32.bf16.bf16.f32");
#elif defined(PRODUCT_FLOAT16)
  MULTIPLY_ADD("m16n8k16.row.col.f32.f16.f16.f32");
#else
  MULTIPLY_ADD("m16n8k8.row.col.f32.tf32.tf32.f32");
#endif
}

__device__ __forceinline__ u32 bfloat16s(float low, float high) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

__device__ __forceinline__ u32 float16s(float low, float high) {
  u32 word;
  asm("{.reg .f16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
      : "=r"(word) : "f"(low), "f"(high));
  return word;
}

__device__ __forceinline__ float from_float16(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ u32 tf32(float value) {
  u32 word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
  return word;
}

// One instruction, to 11 bits: four times as exact as the bfloat16 that h is rounded to. It keeps
// the relative error of small values.
__device__ __forceinline__ float short_tanh(float value) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// Into the L2 cache, for a later step.
__device__ __forceinline__ void fetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" :: "l"(from));
}

#define SHARED_MEMORY(name) extern __shared__ uint4 name[]
#endif

#ifdef PRODUCT_BFLOAT16
#define TANH(value) short_tanh(value)
#else
#define TANH(value) tanhf(value)
#endif
#ifdef PRECISE
#define EXP(value) expf(value)
#else
#define EXP(value) __expf(value)
#endif

// (the constants)

constexpr int AHEAD = 2;  // steps: how long before it is read an array is fetched
constexpr u32 EMPTY = 0xffffffff, NOT_A_NUMBER = 0x7fffffff;

// What is stored in two bytes or four.
struct Float32 {
  static constexpr int SIZE = 4;
  static __device__ float get(const char* p) { return *reinterpret_cast<const float*>(p); }
  static __device__ void put(char* p, float v) { *reinterpret_cast<float*>(p) = v; }
};

struct Bfloat16 {
  static constexpr int SIZE = 2;
  static __device__ float get(const char* p) {
    return __uint_as_float(u32(*reinterpret_cast<const unsigned short*>(p)) << 16);
  }
  static __device__ void put(char* p, float v) {
    *reinterpret_cast<unsigned short*>(p) = bfloat16s(v, v) & 0xffff;
  }
};

struct Float16 {
  static constexpr int SIZE = 2;
  static __device__ float get(const char* p) {
    return from_float16(*reinterpret_cast<const unsigned short*>(p));
  }
  static __device__ void put(char* p, float v) {
    *reinterpret_cast<unsigned short*>(p) = float16s(v, v) & 0xffff;
  }
};

#if defined(PRODUCT_BFLOAT16)
using Product = Bfloat16;
#elif defined(PRODUCT_FLOAT16)
using Product = Float16;
#else
using Product = Float32;
#endif

struct Args {
  char* array[MOST_ARRAYS];
  long long member[MOST_ARRAYS];  // bytes from a member of an ensemble to the next one's
  char* host;  // a word of the host's, which becomes 1 when a block gives up
  int steps, rows, tiles, groups;
  int first;  // group of this launch
};

constexpr int FLAG = 128;  // bytes before the exchange: a cache line for the flag
constexpr u32 POLLS_BETWEEN_LOOKS = 64;  // at the flag; MOST_POLLS is a multiple
constexpr int THREADS = 32 * WARPS;
constexpr int HIDDEN = HEADS * WIDTH;
constexpr int PIECE = 64 / Product::SIZE;  // units of K in 64 bytes: two multiply_adds
constexpr int PADDED = (WIDTH + PIECE - 1) / PIECE * PIECE;
constexpr int ROW_TILES = (TILE + 15) / 16;
constexpr int EACH = (TILE * UNITS + THREADS - 1) / THREADS;  // units of a thread
constexpr int SUMMED = GATES - APART, SLOTS = SUMMED + 2 * APART;

// The K of the products, and their columns.
#ifdef FORWARD
constexpr int K = PADDED, COLUMNS = GATES * UNITS;
#else
constexpr int K = GATES * PADDED, COLUMNS = UNITS;
#endif
constexpr int PIECES = K / PIECE, COLUMN_TILES = COLUMNS / 8;
constexpr int MINE = (PIECES + WARPS - 1) / WARPS;  // pieces of a warp
constexpr int HELD = MINE * COLUMN_TILES * 4 <= MOST_HELD ? MINE : MOST_HELD / (COLUMN_TILES * 4);
constexpr int LEFT = MINE - HELD;  // in shared memory
constexpr int AT_ONCE = MINE < 8 / ROW_TILES ? MINE : 8 / ROW_TILES;  // pieces read together
constexpr int ONE_FIRST = 4;  // of so many words, one is waited for before the others
constexpr int WORKING = PIECES < WARPS ? PIECES : WARPS;  // warps that have any
constexpr int STRIDE = COLUMNS + (40 - COLUMNS % 32) % 32;  // of a row of sums: 8 banks further

__device__ __forceinline__ bool empty(uint4 v) {
  return v.x == EMPTY || v.y == EMPTY || v.z == EMPTY || v.w == EMPTY;
}

__device__ __forceinline__ u32 full(u32 word) { return word == EMPTY ? NOT_A_NUMBER : word; }

// A number into the exchange, by all threads of a warp; neighbours have neighbouring units.
__device__ __forceinline__ void give(bool there, char* to, float value) {
#if defined(PRODUCT_FLOAT32)
#ifdef PRECISE
  const u32 word = __float_as_uint(value);
#else
  const u32 word = tf32(value);
#endif
  if (there) poke(to, full(word));
#else
  const float next = __shfl_down_sync(0xffffffff, value, 1);
#ifdef PRODUCT_BFLOAT16
  const u32 word = bfloat16s(value, next);
#else
  const u32 word = float16s(value, next);
#endif
  if (there && threadIdx.x % 2 == 0) poke(to, full(word));
#endif
}

// How long a thread still waits for a step's words.
struct Patience {
  char *flag, *host;
  u32 polls = 0;  // and not time, in which another process may have had the GPU

  // After a poll in vain: whether to poll again.
  __device__ __forceinline__ bool again() {
    if (polls == MOST_POLLS) return false;
    if (++polls % POLLS_BETWEEN_LOOKS != 0) return true;
    const bool raised = peek(flag).x != EMPTY;
    if (polls < MOST_POLLS && !raised) return true;
    if (!raised) {
      tell(host, 1);
      poke(flag, 0);
    }
    __threadfence();  // before what it publishes now: who reads that, finds the flag
    polls = MOST_POLLS;
    return false;
  }
};

// Both halves of 64 bytes of K. The order of K is free as long as both factors have the same: each
// lane has 16 bytes in one piece, of two rows of the left factor and one column of the right one.
__device__ __forceinline__ void multiply_add(float (&c)[4], uint4 upper, uint4 lower, uint4 b) {
#ifdef PRECISE  // a float32 as the sum of two tf32
  auto high = [](u32 v) { return v & 0xffffe000; };
  auto low = [&](u32 v) { return __float_as_uint(__uint_as_float(v) - __uint_as_float(high(v))); };
  auto part = [](uint4 v, auto f) { return make_uint4(f(v.x), f(v.y), f(v.z), f(v.w)); };
  auto add = [&](uint4 u, uint4 l, uint4 w) {
    multiply_add(c, u.x, l.x, u.y, l.y, w.x, w.y);
    multiply_add(c, u.z, l.z, u.w, l.w, w.z, w.w);
  };
  add(part(upper, low), part(lower, low), part(b, high));
  add(part(upper, high), part(lower, high), part(b, low));
  add(part(upper, high), part(lower, high), part(b, high));
#else
  multiply_add(c, upper.x, lower.x, upper.y, lower.y, b.x, b.y);
  multiply_add(c, upper.z, lower.z, upper.w, lower.w, b.z, b.w);
#endif
}

// The recurrent weights of a block's units: of each warp, its pieces of K.
struct Weights {
  uint4 held[HELD ? HELD : 1][COLUMN_TILES];
  uint4* left;  // [LEFT, COLUMN_TILES, 32]

  // `at(k, column)` gives the bits of a weight.
  template <class At>
  __device__ void load(uint4* shared, int warp, int lane, At at) {
    left = shared + warp * LEFT * COLUMN_TILES * 32;
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      const int k = (i * WARPS + warp) * PIECE + lane % 4 * (PIECE / 4);
#pragma unroll
      for (int n = 0; n < COLUMN_TILES; ++n) {
        const int column = n * 8 + lane / 4;
        u32 word[4];
        for (int j = 0; j < 4; ++j) {
          if (Product::SIZE == 4) {
            word[j] = at(k + j, column);
          } else {
            word[j] = at(k + 2 * j, column) | at(k + 2 * j + 1, column) << 16;
          }
        }
        const uint4 all = make_uint4(word[0], word[1], word[2], word[3]);
        if (i < HELD) {
          held[i][n] = all;
        } else {
          left[((i - HELD) * COLUMN_TILES + n) * 32 + lane] = all;
        }
      }
    }
  }

  __device__ __forceinline__ uint4 at(int i, int n, int lane) const {
    return i < HELD ? held[i < HELD ? i : 0][n]
                    : left[((i - HELD) * COLUMN_TILES + n) * 32 + lane];
  }
};

// A warp's part of the products of one step: waits for what it needs of the exchange, and puts its
// sums down in `sums`, [WARPS, 16 * ROW_TILES, STRIDE].
__device__ __forceinline__ void multiply(const Weights& weights, const char* from, int count,
                                         float* sums, int warp, int lane, Patience patience) {
  float c[ROW_TILES][COLUMN_TILES][4];
#pragma unroll
  for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] = 0;
  from += (warp * TILE + lane / 4) * 64 + lane % 4 * 16;
#pragma unroll
  for (int first = 0; first < MINE; first += AT_ONCE) {
    uint4 a[AT_ONCE][ROW_TILES][2];
    auto place = [&](int j, int m, int half) {
      return from + ((first + j) * WARPS * TILE + m * 16 + half * 8) * 64;
    };
    auto there = [&](int j, int m, int half) {
      return first + j < MINE && (first + j) * WARPS + warp < PIECES &&
             m * 16 + half * 8 + lane / 4 < count;
    };
    // Too many words asked for in vain would hold up those that are there.
    if (AT_ONCE * ROW_TILES >= ONE_FIRST && there(0, 0, 0))
      while (empty(peek(place(0, 0, 0))) && patience.again()) {
      }
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j)
#pragma unroll
      for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          a[j][m][half] = there(j, m, half) ? peek(place(j, m, half)) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
#pragma unroll
      for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (there(j, m, half))
            while (empty(a[j][m][half]) && patience.again())
              a[j][m][half] = peek(place(j, m, half));
      __syncwarp();
      if (first + j < MINE && (first + j) * WARPS + warp < PIECES) {
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n) {
          const uint4 b = weights.at(first + j, n, lane);
#pragma unroll
          for (int m = 0; m < ROW_TILES; ++m) multiply_add(c[m][n], a[j][m][0], a[j][m][1], b);
        }
      }
    }
  }
  if (warp >= WORKING) return;
  sums += (warp * 16 * ROW_TILES + lane / 4) * STRIDE + lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n) {
      float* to = sums + m * 16 * STRIDE + n * 8;
      *reinterpret_cast<float2*>(to) = make_float2(c[m][n][0], c[m][n][1]);
      *reinterpret_cast<float2*>(to + 8 * STRIDE) = make_float2(c[m][n][2], c[m][n][3]);
    }
}

// What all warps found for a row and a column. For a row that is not there it is a number nobody
// uses: a condition would make each sum wait for the one before.
__device__ __forceinline__ float total(const float* sums, int row, int column) {
  row = min(row, 16 * ROW_TILES - 1);
  float part[WORKING];
#pragma unroll
  for (int w = 0; w < WORKING; ++w)
    part[w] = sums[(w * 16 * ROW_TILES + row) * STRIDE + column];
#pragma unroll
  for (int by = 1; by < WORKING; by *= 2)
#pragma unroll
    for (int w = 0; w + by < WORKING; w += 2 * by) part[w] += part[w + by];
  return part[0];
}

// The row of a tile that a thread has. A warp that has two rows of 16 units takes rows two apart,
// whose sums lie in different banks.
__device__ __forceinline__ int row_of(int place) {
  const int row = place / UNITS;
  return UNITS == 16 ? (row & ~3) | (row & 1) << 1 | (row >> 1 & 1) : row;
}

// A unit of a row.
struct Unit {
  int row, column;  // in the tile, and in the block
  int batch, hidden;  // among all rows, and all units
  bool there;  // whether the row is; of the units that fill up K, there are some
  bool has;    // whether the unit is, too

  // In an array [..., rows, parts * HIDDEN].
  __device__ long long place(long long step, int part, int parts, int rows) const {
    return (step * rows + batch) * parts * HIDDEN + part * HIDDEN + hidden;
  }

  template <class Type>
  __device__ float read(const char* array, long long step, int part, int parts, int rows) const {
    return has ? Type::get(array + place(step, part, parts, rows) * Type::SIZE) : 0;
  }

  template <class Type>
  __device__ void fetch(const char* array, long long step, int part, int parts, int rows) const {
    if (has) ::fetch(array + place(step, part, parts, rows) * Type::SIZE);
  }

  template <class Type>
  __device__ void write(char* array, long long step, int part, int parts, int rows,
                        float value) const {
    if (has) Type::put(array + place(step, part, parts, rows) * Type::SIZE, value);
  }
};

// Where packed gates are: the array, and the place in it; see `Packed` in packed.py.
constexpr __device__ int part_of(int slot) { return slot < SUMMED ? 0 : slot < GATES ? 1 : 2; }
constexpr __device__ int array_of(int slot) { return part_of(slot) - (SUMMED == 0); }
constexpr int KEPT_ARRAYS = (SUMMED > 0) + 2 * (APART > 0);
constexpr __device__ int gates_in_array(int i) { return SUMMED > 0 && i == 0 ? SUMMED : APART; }
constexpr __device__ int gates_in(int slot) { return slot < SUMMED ? SUMMED : APART; }
constexpr __device__ int place_of(int slot) {
  return slot < SUMMED ? slot : slot < GATES ? slot - SUMMED : slot - GATES;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) run(const __grid_constant__ Args args) {
  SHARED_MEMORY(shared);
  float* sums = reinterpret_cast<float*>(shared + WARPS * LEFT * COLUMN_TILES * 32);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int block = blockIdx.x % BLOCKS, group = args.first + blockIdx.x / BLOCKS;
  const int tile = group % args.tiles, head = group / args.tiles % HEADS;
  const int member = group / args.tiles / HEADS;
  const int first = block * UNITS, rows = args.rows, steps = args.steps;
  const int count = min(TILE, rows - tile * TILE);
  auto array = [&](int i) { return args.array[i] + (ENSEMBLE ? member * args.member[i] : 0); };
  auto is_set = [&](int i, int t, const Unit& unit) {
    return unit.there && array(i)[static_cast<long long>(t) * rows + unit.batch] != 0;
  };

  Unit units[EACH];
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    const int place = e * THREADS + threadIdx.x;
    Unit& unit = units[e];
    unit.row = row_of(place);
    unit.column = place % UNITS;
    unit.batch = tile * TILE + unit.row;
    unit.hidden = head * WIDTH + first + unit.column;
    unit.there = unit.row < count && first + unit.column < PADDED;
    unit.has = unit.there && first + unit.column < WIDTH;
  }

  // The exchange of a step, this group's part: [PIECES, TILE, 64 bytes]. What a warp reads at once
  // lies together.
  const long long a_step = static_cast<long long>(args.groups) * PIECES * TILE * 64;
  char* const flag = args.array[EXCHANGE];
  char* exchange = flag + FLAG + static_cast<long long>(group) * PIECES * TILE * 64;
  auto place = [&](int s, const Unit& unit, int gate) {
    const int k = first + unit.column, piece = gate * (PADDED / PIECE) + k / PIECE;
    return exchange + s * a_step + (piece * TILE + unit.row) * 64 + k % PIECE * Product::SIZE;
  };

  const Patience patience{flag, args.host};
  // At the end: whether somebody gave up, so that what this thread found may mean nothing.
  auto given_up = [&] {
    __threadfence();  // after all that this block has read of the exchange
    __syncthreads();
    return peek(flag).x != EMPTY;
  };
  // NaN for this thread's units in an array [copies, rows, parts * HIDDEN].
  auto spoil = [&](auto type, int which, int copies, int parts) {
#pragma unroll 1
    for (int i = 0; i < copies * parts; ++i)
#pragma unroll
      for (int e = 0; e < EACH; ++e)
        units[e].write<decltype(type)>(array(which), i / parts, i % parts, parts, rows,
                                       __uint_as_float(NOT_A_NUMBER));
  };

  Weights weights;
  const char* r = array(R) + static_cast<long long>(head) * WIDTH * GATES * WIDTH * Product::SIZE;
  weights.load(shared, warp, lane, [&](int k, int column) -> u32 {
#ifdef FORWARD
    const int from = k, gate = column / UNITS, to = first + column % UNITS;
#else
    const int from = first + column, gate = k / PADDED, to = k % PADDED;
#endif
    if (from >= WIDTH || to >= WIDTH || gate >= GATES) return 0;
    const char* p = r + ((from * GATES + gate) * WIDTH + to) * Product::SIZE;
    if (Product::SIZE == 2) return *reinterpret_cast<const unsigned short*>(p);
#ifdef PRECISE
    return *reinterpret_cast<const u32*>(p);
#else
    return tf32(*reinterpret_cast<const float*>(p));
#endif
  });

  float unit_weights[EACH][UNIT_WEIGHTS + 1];
#pragma unroll
  for (int e = 0; e < EACH; ++e)
#pragma unroll
    for (int u = 0; u < UNIT_WEIGHTS; ++u)
      unit_weights[e][u] =
          units[e].has ? reinterpret_cast<float*>(array(UNIT + u))[units[e].hidden] : 0;

#ifdef FORWARD
  float state[EACH][STATES];
  auto put_back = [&](int e, int which) {
#pragma unroll
    for (int k = 0; k < STATES; ++k)
      state[e][k] = units[e].read<Float32>(array(which + k), 0, 0, 1, rows);
  };
  auto time = [&](int s) { return REVERSE ? steps - 1 - s : s; };
  auto starts = [&](int e, int s) {
    return STARTS >= 0 && s < steps && is_set(STARTS, time(s), units[e]);
  };
  // What step s begins with, for all blocks to see.
  auto begin = [&](int e, int s, bool start) {
    if (start) put_back(e, INITIAL);
    give(units[e].there, place(s, units[e], 0), state[e][0]);
  };
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    put_back(e, STATE);
    begin(e, 0, starts(e, 0));
  }

  for (int s = 0; s < steps; ++s) {
    const int t = time(s);
    float x[EACH][GATES];
    bool real[EACH], start[EACH];
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      real[e] = MASK < 0 || is_set(MASK, t, units[e]);
      start[e] = starts(e, s + 1);
#pragma unroll
      for (int g = 0; g < GATES; ++g)
        x[e][g] = units[e].read<Float32>(array(GIVEN), t, g, GATES, rows);
#pragma unroll
      for (int g = 0; g < GATES; ++g)
        if (s + AHEAD < steps)
          units[e].fetch<Float32>(array(GIVEN), time(s + AHEAD), g, GATES, rows);
    }
    multiply(weights, exchange + s * a_step, count, sums, warp, lane, patience);
    __syncthreads();
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const Unit& unit = units[e];
      float in[STATES + SLOTS + UNIT_WEIGHTS], out[STATES];
#pragma unroll
      for (int g = 0; g < GATES; ++g) {
        const float sum = total(sums, unit.row, g * UNITS + unit.column);
        const int slot = STATES + SLOT[g];
        in[slot] = SLOT[g] < SUMMED ? x[e][g] + sum : x[e][g];
        if (SLOT[g] >= SUMMED) in[slot + APART] = sum;
      }
#pragma unroll
      for (int k = 0; k < STATES; ++k) in[k] = state[e][k];
#pragma unroll
      for (int u = 0; u < UNIT_WEIGHTS; ++u) in[STATES + SLOTS + u] = unit_weights[e][u];
      update(in, out);
#pragma unroll
      for (int k = 0; k < STATES; ++k)
        if (real[e] && unit.has) state[e][k] = out[k];
      if (s + 1 < steps) begin(e, s + 1, start[e]);
      if (YS >= 0) unit.write<Output>(array(YS), t, 0, 1, rows, real[e] ? out[0] : 0);
      // What the backward will need.
#pragma unroll
      for (int slot = 0; slot < (KEPT_GATES >= 0 ? SLOTS : 0); ++slot)
        unit.write<Float32>(array(KEPT_GATES + array_of(slot)), t, place_of(slot), gates_in(slot),
                            rows, in[STATES + slot]);
#pragma unroll
      for (int k = FIRST_KEPT; k < (KEPT_STATES >= 0 ? STATES : 0); ++k)
        unit.write<Float32>(array(KEPT_STATES + k - FIRST_KEPT), t, 0, 1, rows, in[k]);
    }
    __syncthreads();  // the sums have been read
  }
#pragma unroll
  for (int e = 0; e < EACH; ++e)
#pragma unroll
    for (int k = 0; k < STATES; ++k)
      units[e].write<Float32>(array(FINAL + k), 0, 0, 1, rows, state[e][k]);
  if (!given_up()) return;
  for (int k = 0; k < STATES; ++k) spoil(Float32(), FINAL + k, 1, 1);
  if (YS >= 0) spoil(Output(), YS, steps, 1);
  for (int i = 0; i < (KEPT_GATES >= 0 ? KEPT_ARRAYS : 0); ++i)
    spoil(Float32(), KEPT_GATES + i, steps, gates_in_array(i));
  for (int k = FIRST_KEPT; k < (KEPT_STATES >= 0 ? STATES : 0); ++k)
    spoil(Float32(), KEPT_STATES + k - FIRST_KEPT, steps, 1);

#else  // backward
  auto time = [&](int s) { return REVERSE ? s : steps - 1 - s; };
  float d[EACH][STATES], d_initial[EACH][STATES], d_unit[EACH][UNIT_WEIGHTS + 1];
  bool real[EACH], start[EACH];  // at the step before
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
#pragma unroll
    for (int k = 0; k < STATES; ++k) {
      d[e][k] = units[e].read<Float32>(array(D_FINAL + k), 0, 0, 1, rows);
      d_initial[e][k] = 0;
    }
#pragma unroll
    for (int u = 0; u < UNIT_WEIGHTS; ++u) d_unit[e][u] = 0;
  }

  for (int s = 0; s <= steps; ++s) {
    const int t = time(s);
    float kept[EACH][KEPT + 1], d_y[EACH];
    bool real_now[EACH], start_now[EACH];
    if (s < steps) {
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        const Unit& unit = units[e];
        real_now[e] = MASK < 0 || is_set(MASK, t, unit);
        start_now[e] = STARTS >= 0 && is_set(STARTS, t, unit);
        // What needs no cotangent is done while the other blocks' words are on their way.
        float in[STATES + SLOTS + UNIT_WEIGHTS];
#pragma unroll
        for (int k = 0; k < STATES; ++k)
          in[k] = USED[k] < 0 ? 0 : unit.read<Float32>(array(BEFORE + USED[k]), t, 0, 1, rows);
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot)
          in[STATES + slot] = unit.read<Float32>(array(GIVEN + array_of(slot)), t, place_of(slot),
                                                 gates_in(slot), rows);
#pragma unroll
        for (int u = 0; u < UNIT_WEIGHTS; ++u) in[STATES + SLOTS + u] = unit_weights[e][u];
        d_y[e] = D_YS < 0 ? 0 : unit.read<Output>(array(D_YS), t, 0, 1, rows);
        if (s + AHEAD < steps) {
          const int later = time(s + AHEAD);
#pragma unroll
          for (int k = 0; k < STATES; ++k)
            if (USED[k] >= 0) unit.fetch<Float32>(array(BEFORE + USED[k]), later, 0, 1, rows);
#pragma unroll
          for (int slot = 0; slot < SLOTS; ++slot)
            unit.fetch<Float32>(array(GIVEN + array_of(slot)), later, place_of(slot),
                                gates_in(slot), rows);
          if (D_YS >= 0) unit.fetch<Output>(array(D_YS), later, 0, 1, rows);
        }
        prepare(in, kept[e]);
      }
    }
    if (s > 0) {
      multiply(weights, exchange + (s - 1) * a_step, count, sums, warp, lane, patience);
      __syncthreads();
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        const float sum = total(sums, units[e].row, units[e].column);
        if (real[e] && units[e].has) d[e][0] += sum;
#pragma unroll
        for (int k = 0; k < STATES; ++k)
          if (start[e]) {
            d_initial[e][k] += d[e][k];
            d[e][k] = 0;
          }
      }
    }
    if (s == steps) break;
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const Unit& unit = units[e];
      real[e] = real_now[e];
      start[e] = start_now[e];
      float given[STATES], out[STATES + SLOTS + UNIT_WEIGHTS];
#pragma unroll
      for (int k = 0; k < STATES; ++k) given[k] = d[e][k] + (k == 0 ? d_y[e] : 0);
      derivative(kept[e], given, out);
      const bool counts = real[e] && unit.has;
#pragma unroll
      for (int k = 0; k < STATES + SLOTS + UNIT_WEIGHTS; ++k)
        if (!counts) out[k] = k < STATES ? d[e][k] : 0;
#pragma unroll
      for (int g = 0; g < GATES; ++g)
        give(unit.there, place(s, unit, g),
             out[STATES + SLOT[g] + (SLOT[g] < SUMMED ? 0 : APART)]);
#pragma unroll
      for (int g = 0; g < GATES; ++g) {
        unit.write<Product>(array(D_STATE_GATES), t, g, GATES, rows,
                            out[STATES + SLOT[g] + (SLOT[g] < SUMMED ? 0 : APART)]);
        if (APART)
          unit.write<Product>(array(D_INPUT_GATES), t, g, GATES, rows, out[STATES + SLOT[g]]);
      }
#pragma unroll
      for (int k = 0; k < STATES; ++k) d[e][k] = out[k];
#pragma unroll
      for (int u = 0; u < UNIT_WEIGHTS; ++u) d_unit[e][u] += out[STATES + SLOTS + u];
    }
    __syncthreads();  // the sums have been read
  }
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
#pragma unroll
    for (int k = 0; k < STATES; ++k) {
      units[e].write<Float32>(array(D_STATE + k), 0, 0, 1, rows, d[e][k]);
      if (STARTS >= 0)
        units[e].write<Float32>(array(D_INITIAL + k), 0, 0, 1, rows, d_initial[e][k]);
    }
#pragma unroll
    for (int u = 0; u < UNIT_WEIGHTS; ++u)
      units[e].write<Float32>(array(D_UNIT + u), 0, 0, 1, rows, d_unit[e][u]);
  }
  if (!given_up()) return;
  for (int k = 0; k < STATES; ++k) spoil(Float32(), D_STATE + k, 1, 1);
  for (int k = 0; k < (STARTS >= 0 ? STATES : 0); ++k) spoil(Float32(), D_INITIAL + k, 1, 1);
  for (int u = 0; u < UNIT_WEIGHTS; ++u) spoil(Float32(), D_UNIT + u, 1, 1);
  spoil(Product(), D_STATE_GATES, steps, GATES);
  if (APART) spoil(Product(), D_INPUT_GATES, steps, GATES);
#endif
}
