// What an x86-64 processor, and the system on it, can run. It is asked itself: what stands behind
// __builtin_cpu_supports is empty in some compilers' runtimes, as in zig's, and says no to all.

#pragma once

#include <cpuid.h>

#include <cstdint>

namespace jaxrnn {

struct Processor {
  bool avx2 = false, avx512 = false;  // as native/CMakeLists.txt compiles them
};

inline Processor processor() {
  uint32_t a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return {};
  // Of which registers the system keeps the contents.
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t kYmm = 0x06, kZmm = 0xe6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {};
  constexpr uint32_t k512 = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
  return {(low & kYmm) == kYmm && (b & bit_AVX2), (low & kZmm) == kZmm && (b & k512) == k512};
}

}  // namespace jaxrnn
