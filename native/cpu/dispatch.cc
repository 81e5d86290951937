// The instruction sets of this machine, and which one a call takes.

#include "dispatch.h"

#include <chrono>

#if defined(__x86_64__)
#include "processor.h"
#endif

namespace jaxrnn {

#if defined(__x86_64__) && !defined(JAXRNN_BASELINE_ALONE)
extern const Isa baseline, avx2, avx512;
#elif defined(__aarch64__)
extern const Isa neon;
#else
extern const Isa baseline;
#endif

const std::vector<const Isa*>& available() {
  static const std::vector<const Isa*> all = [] {
    std::vector<const Isa*> found;
#if defined(__x86_64__) && !defined(JAXRNN_BASELINE_ALONE)
    const Processor here = processor();
    if (here.avx512) found.push_back(&avx512);
    if (here.avx2) found.push_back(&avx2);
    found.push_back(&baseline);
#elif defined(__aarch64__)
    found.push_back(&neon);
#else
    found.push_back(&baseline);
#endif
    return found;
  }();
  return all;
}

const Isa* find_isa(std::string_view name) {
  if (name.empty()) return available().front();
  for (const Isa* isa : available())
    if (name == isa->name) return isa;
  return nullptr;
}

}  // namespace jaxrnn

#pragma GCC visibility push(default)  // from here on, what Python looks up

// The instruction sets of this machine, the best first: "avx512,avx2,baseline".
extern "C" const char* jaxrnn_instruction_sets() {
  static const std::string names = [] {
    std::string out;
    for (const auto* isa : jaxrnn::available())
      out += (out.empty() ? "" : ",") + std::string(isa->name);
    return out;
  }();
  return names.c_str();
}

// Operations a second of this thread, in registers: of numbers of so many bytes, 4 or 8, on an
// instruction set. Zero if the machine has none of that name.
extern "C" double jaxrnn_multiply_adds(const char* name, int32_t bytes, double seconds) {
  using Clock = std::chrono::steady_clock;
  const jaxrnn::Isa* isa = jaxrnn::find_isa(name);
  if (!isa) return 0;
  constexpr int64_t kRounds = 1 << 16;
  const double lanes = (bytes == 8 ? isa->f64.recurrence.lanes : isa->f32.recurrence.lanes);
  double operations = 0, taken = 0, made = 0;
  for (auto begin = Clock::now(); taken < seconds;
       taken = std::chrono::duration<double>(Clock::now() - begin).count()) {
    made += bytes == 8 ? isa->f64.multiply_adds(kRounds) : isa->f32.multiply_adds(kRounds);
    operations += 2 * lanes * jaxrnn::kChains * kRounds;
  }
  return made > 0 ? operations / taken : 0;
}
