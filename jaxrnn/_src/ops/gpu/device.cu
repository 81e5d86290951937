// What every kernel for GPUs begins with: what CUDA has and C++ has not, how a kernel is called, and
// types of 16 bits. `source.py` writes MOST_ARRAYS before it.

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

// What an array holds, and what arithmetic makes of it.
struct Float32 {
  typedef float Bits;
  static constexpr int SIZE = 4;
  static __device__ float wide(Bits v) { return v; }
  static __device__ Bits narrow(float v) { return v; }
};
struct Bfloat16 {
  typedef unsigned short Bits;
  static constexpr int SIZE = 2;
  static __device__ float wide(Bits v) { return __uint_as_float(u32(v) << 16); }
  static __device__ Bits narrow(float v) { return bfloat16s(v, v) & 0xffff; }
};
struct Float16 {
  typedef unsigned short Bits;
  static constexpr int SIZE = 2;
  static __device__ float wide(Bits v) { return from_float16(v); }
  static __device__ Bits narrow(float v) { return float16s(v, v) & 0xffff; }
};

#if defined(PRODUCT_BFLOAT16)
using Product = Bfloat16;
#elif defined(PRODUCT_FLOAT16)
using Product = Float16;
#else
using Product = Float32;
#endif

// A call: see native/gpu/gpu.cc.
struct Args {
  char* array[MOST_ARRAYS];
  long long member[MOST_ARRAYS];  // bytes from a member of an ensemble to the next one's
  char* host;  // a word of the host's, which becomes 1 when a block gives up
  int steps, rows, tiles, groups;
  int first;  // group of this launch
};
