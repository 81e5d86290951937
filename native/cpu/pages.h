// Large pages for what a call writes.

#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace jaxrnn {

constexpr int64_t kLargePage = 2 << 20;

// What a call writes is often new memory, and taking it in pages of 4 KiB takes longer than filling
// it. Rounded outward: the pages at both ends belong to arrays of the same program, or to nobody,
// and of arrays of 16 MiB they are an eighth.
inline void in_large_pages(char* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  if (bytes < kLargePage) return;
  uintptr_t first = reinterpret_cast<uintptr_t>(data) / kLargePage * kLargePage;
  uintptr_t end = reinterpret_cast<uintptr_t>(data) + bytes;
  madvise(reinterpret_cast<void*>(first), (end + kLargePage - 1) / kLargePage * kLargePage - first,
          MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace jaxrnn
