// The recurrence on a GPU: all steps in one launch, forward or backward.
//
// A group of blocks runs one tile of rows of one head. Each block has some of the head's units, or
// all of them: it holds their recurrent weights in registers and shared memory, and their states in
// registers. At each step it needs what all blocks of its group made of the step before: h going
// forward, the gates' gradients going backward.
//
// What is compiled with this file: the constants in capitals, which `source.py` writes before it;
// `update`, or `prepare` and `derivative`, an elementwise function as straight code; and `Products`,
// which multiplies and hands on what is multiplied: `exchange.cu` for blocks that exchange it, with
// `block.cu` or `cluster.cu`; `alone.cu` for a block that has all units.

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

// Four instructions; exact to some 2e-7.
__device__ __forceinline__ float short_logistic(float value) {
  float result;
  asm("{.reg .f32 e; mul.ftz.f32 e, %1, 0fBFB8AA3B; ex2.approx.ftz.f32 e, e;"  // -log2(e)
      " add.ftz.f32 e, e, 0f3F800000; rcp.approx.ftz.f32 %0, e;}"
      : "=f"(result) : "f"(value));
  return result;
}

// Into the L2 cache, for a later step.
__device__ __forceinline__ void fetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" :: "l"(from));
}

// Keeps an address in a register, where the compiler would compute it again between a barrier and a
// publish.
__device__ __forceinline__ void hold(int& place) { asm volatile("" : "+r"(place)); }
__device__ __forceinline__ void hold(char*& place) { asm volatile("" : "+l"(place)); }

#define SHARED_MEMORY(name) extern __shared__ uint4 name[]
#endif

#ifdef PRODUCT_BFLOAT16
#define TANH(value) short_tanh(value)
#else
#define TANH(value) tanhf(value)
#endif
#ifdef PRECISE
#define LOGISTIC(value) __fdividef(1.0f, 1.0f + expf(-(value)))
#else
#define LOGISTIC(value) short_logistic(value)
#endif

// (the constants)

constexpr u32 NOT_A_NUMBER = 0x7fffffff;

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

constexpr int THREADS = 32 * WARPS;
constexpr int HIDDEN = HEADS * WIDTH;
constexpr int PIECE = 64 / Product::SIZE;  // units of K in 64 bytes: two multiply_adds
constexpr int PADDED = (WIDTH + PIECE - 1) / PIECE * PIECE;
constexpr int SUMMED = GATES - APART, SLOTS = SUMMED + 2 * APART;

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

// (the products)

extern "C" __global__ void __launch_bounds__(THREADS, 1) run(const __grid_constant__ Args args) {
  SHARED_MEMORY(shared);
  const int block = blockIdx.x % BLOCKS, group = args.first + blockIdx.x / BLOCKS;
  const int tile = group % args.tiles, head = group / args.tiles % HEADS;
  const int member = group / args.tiles / HEADS;
  const int first = block * UNITS, rows = args.rows, steps = args.steps;
  const int count = min(TILE, rows - tile * TILE);
  auto array = [&](int i) { return args.array[i] + (ENSEMBLE ? member * args.member[i] : 0); };
  auto is_set = [&](int i, int t, const Unit& unit) {
    return unit.there && array(i)[static_cast<long long>(t) * rows + unit.batch] != 0;
  };

  Products products(args, shared, group, first, count);
  Unit units[EACH];
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    Unit& unit = units[e];
    unit.row = products.row(e);
    unit.column = products.column(e);
    unit.batch = tile * TILE + unit.row;
    unit.hidden = head * WIDTH + first + unit.column;
    unit.there = unit.row < count && first + unit.column < PADDED;
    unit.has = unit.there && first + unit.column < WIDTH;
  }

  // NaN for this thread's units in an array [copies, rows, parts * HIDDEN].
  auto spoil = [&](auto type, int which, int copies, int parts) {
#pragma unroll 1
    for (int i = 0; i < copies * parts; ++i)
#pragma unroll
      for (int e = 0; e < EACH; ++e)
        units[e].write<decltype(type)>(array(which), i / parts, i % parts, parts, rows,
                                       __uint_as_float(NOT_A_NUMBER));
  };

  const char* r = array(R) + static_cast<long long>(head) * WIDTH * GATES * WIDTH * Product::SIZE;
  products.load([&](int from, int to, int gate) -> u32 {  // the bits of a weight
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
    products.publish(s, e, units[e], 0, state[e][0]);
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
    products.multiply(s);
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const Unit& unit = units[e];
      float in[STATES + SLOTS + UNIT_WEIGHTS], out[STATES];
#pragma unroll
      for (int g = 0; g < GATES; ++g) {
        const float sum = products.sum(e, unit, g);
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
      float after[STATES];  // for those who want it: what is next may begin anew
#pragma unroll
      for (int k = 0; k < STATES; ++k) after[k] = state[e][k];
      if (s + 1 < steps) begin(e, s + 1, start[e]);
      if (YS >= 0) unit.write<Output>(array(YS), t, 0, 1, rows, real[e] ? out[0] : 0);
#pragma unroll
      for (int k = 0; k < STATES; ++k)
        if (IS_AFTER[k] >= 0)
          unit.write<Float32>(array(AFTER + IS_AFTER[k]), t, 0, 1, rows, after[k]);
      // What the backward will need.
#pragma unroll
      for (int slot = 0; slot < (KEPT_GATES >= 0 ? SLOTS : 0); ++slot)
        unit.write<Float32>(array(KEPT_GATES + array_of(slot)), t, place_of(slot), gates_in(slot),
                            rows, in[STATES + slot]);
#pragma unroll
      for (int k = FIRST_KEPT; k < (KEPT_STATES >= 0 ? STATES : 0); ++k)
        unit.write<Float32>(array(KEPT_STATES + k - FIRST_KEPT), t, 0, 1, rows, in[k]);
    }
  }
#pragma unroll
  for (int e = 0; e < EACH; ++e)
#pragma unroll
    for (int k = 0; k < STATES; ++k)
      units[e].write<Float32>(array(FINAL + k), 0, 0, 1, rows, state[e][k]);
  if (!products.given_up()) return;
  for (int k = 0; k < STATES; ++k) spoil(Float32(), FINAL + k, 1, 1);
  if (YS >= 0) spoil(Output(), YS, steps, 1);
  for (int k = 0; k < STATES; ++k)
    if (IS_AFTER[k] >= 0) spoil(Float32(), AFTER + IS_AFTER[k], steps, 1);
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
    float in[EACH][STATES + SLOTS + UNIT_WEIGHTS], kept[EACH][KEPT + 1], d_y[EACH];
    float d_after[EACH][STATES];
    bool real_now[EACH], start_now[EACH];
    if (s < steps) {
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        const Unit& unit = units[e];
        real_now[e] = MASK < 0 || is_set(MASK, t, unit);
        start_now[e] = STARTS >= 0 && is_set(STARTS, t, unit);
#pragma unroll
        for (int k = 0; k < STATES; ++k)
          in[e][k] =
              USED[k] < 0 ? 0 : unit.read<Float32>(array(BEFORE + USED[k]), t, 0, 1, rows);
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot)
          in[e][STATES + slot] = unit.read<Float32>(array(GIVEN + array_of(slot)), t,
                                                    place_of(slot), gates_in(slot), rows);
#pragma unroll
        for (int u = 0; u < UNIT_WEIGHTS; ++u) in[e][STATES + SLOTS + u] = unit_weights[e][u];
        d_y[e] = D_YS < 0 ? 0 : unit.read<Output>(array(D_YS), t, 0, 1, rows);
#pragma unroll
        for (int k = 0; k < STATES; ++k)
          if (IS_AFTER[k] >= 0)
            d_after[e][k] = unit.read<Float32>(array(D_AFTER + IS_AFTER[k]), t, 0, 1, rows);
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
#pragma unroll
          for (int k = 0; k < STATES; ++k)
            if (IS_AFTER[k] >= 0)
              unit.fetch<Float32>(array(D_AFTER + IS_AFTER[k]), later, 0, 1, rows);
        }
        if (EARLY) prepare(in[e], kept[e]);
      }
    }
    if (s > 0) {
      products.multiply(s - 1);
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        const float sum = products.sum(e, units[e], 0);
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
      for (int k = 0; k < STATES; ++k)  // also where a step is not real: the state is held
        if (IS_AFTER[k] >= 0) d[e][k] += d_after[e][k];
#pragma unroll
      for (int k = 0; k < STATES; ++k) given[k] = d[e][k] + (k == 0 ? d_y[e] : 0);
      if (!EARLY) prepare(in[e], kept[e]);
      derivative(kept[e], given, out);
      const bool counts = real[e] && unit.has;
#pragma unroll
      for (int k = 0; k < STATES + SLOTS + UNIT_WEIGHTS; ++k)
        if (!counts) out[k] = k < STATES ? d[e][k] : 0;
#pragma unroll
      for (int g = 0; g < GATES; ++g)
        products.publish(s, e, unit, g, out[STATES + SLOT[g] + (SLOT[g] < SUMMED ? 0 : APART)]);
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
  if (!products.given_up()) return;
  for (int k = 0; k < STATES; ++k) spoil(Float32(), D_STATE + k, 1, 1);
  for (int k = 0; k < (STARTS >= 0 ? STATES : 0); ++k) spoil(Float32(), D_INITIAL + k, 1, 1);
  for (int u = 0; u < UNIT_WEIGHTS; ++u) spoil(Float32(), D_UNIT + u, 1, 1);
  spoil(Product(), D_STATE_GATES, steps, GATES);
  if (APART) spoil(Product(), D_INPUT_GATES, steps, GATES);
#endif
}
