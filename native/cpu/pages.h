// Large pages for what a call writes.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace jaxrnn {

// What a call writes is often new memory, and taking it in pages of 4 KiB takes longer than filling
// it. But where the system has to fetch large ones first (a virtual machine that gave its memory
// back to its host), they take longer still: so one in every eight is tried.
inline void in_large_pages(char* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20, kTried = 8;
  constexpr std::chrono::microseconds kSlow(500);  // to take one
  uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  for (uintptr_t page = first; page < last; page += kTried * kPage) {
    auto ask = [](uintptr_t from, uintptr_t to) {
      return to > from && madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE) == 0;
    };
    if (!ask(page, page + kPage)) return;
    auto begin = std::chrono::steady_clock::now();
    *reinterpret_cast<volatile char*>(page) = 0;
    if (std::chrono::steady_clock::now() - begin > kSlow) return;
    ask(page + kPage, std::min(last, page + kTried * kPage));
  }
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace jaxrnn
