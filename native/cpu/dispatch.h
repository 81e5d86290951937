// What an entry point for XLA begins with: the instruction set, and errors.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>
#include <string_view>

#include "buffers.h"
#include "isa.h"

namespace jaxrnn {

// The instruction sets of this machine, the best first.
const std::vector<const Isa*>& available();

// The one of that name, the best for no name; null if the machine has none of it.
const Isa* find_isa(std::string_view name);

// How many threads may work on a call: as many as the pool has, or fewer if the environment says so.
inline int threads_of(int64_t pool) {
  const char* text = std::getenv("JAXRNN_CPU_THREADS");
  if (!text || !*text) return std::max<int64_t>(1, pool);
  int64_t most = std::strtoll(text, nullptr, 10);
  require(most > 0, "JAXRNN_CPU_THREADS: want how many threads, 1 or more");
  return std::max<int64_t>(1, std::min(most, pool));
}

// What is wrong with a call becomes its error.
template <class Function>
xla::ffi::Error guarded(std::string_view isa_name, Function function) {
  using xla::ffi::Error;
  using xla::ffi::ErrorCode;
  try {
    const Isa* isa = find_isa(isa_name);
    require(isa, "this machine has no instruction set ", std::string(isa_name).c_str());
    return function(*isa);
  } catch (const Bad& bad) {
    return Error(ErrorCode::kInvalidArgument, "jaxrnn: " + std::string(bad.what()));
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::kResourceExhausted, "jaxrnn: out of memory");
  }
}

}  // namespace jaxrnn
