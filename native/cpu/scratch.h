// Memory that lasts for a call, and each worker's share of it.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "pages.h"

namespace jaxrnn {

// In large pages where it is large enough: a worker goes through its packed weights and chunks again
// and again, and in pages of 4 KiB they would miss the TLB.
class Memory {
 public:
  explicit Memory(int64_t bytes) {
    int64_t page = bytes < kLargePage ? 128 : kLargePage;
    bytes = std::max<int64_t>(1, (bytes + page - 1) / page) * page;
    data_.reset(static_cast<char*>(std::aligned_alloc(page, bytes)));
    if (!data_) throw std::bad_alloc();
    in_large_pages(data_.get(), bytes);
  }
  char* get() const { return data_.get(); }

 private:
  std::unique_ptr<char, decltype(&std::free)> data_{nullptr, &std::free};
};

template <class T>
class Scratch {
 public:
  Scratch(int workers, int64_t elements)
      : each_((elements * sizeof(T) + 127) / 128 * 128), memory_(workers * each_) {}
  T* of(int worker) const { return reinterpret_cast<T*>(memory_.get() + worker * each_); }

 private:
  int64_t each_;
  Memory memory_;
};

}  // namespace jaxrnn
