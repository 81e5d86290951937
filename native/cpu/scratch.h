// Memory of each worker's own.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace jaxrnn {

template <class T>
class Scratch {
 public:
  Scratch(int workers, int64_t elements) : each_((elements * sizeof(T) + 127) / 128 * 128) {
    memory_.reset(static_cast<char*>(std::aligned_alloc(128, std::max<int64_t>(1, workers) * each_)));
    if (!memory_) throw std::bad_alloc();
  }
  T* of(int worker) const { return reinterpret_cast<T*>(memory_.get() + worker * each_); }

 private:
  int64_t each_;
  std::unique_ptr<char, decltype(&std::free)> memory_{nullptr, &std::free};
};

}  // namespace jaxrnn
