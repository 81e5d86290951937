// The instruction sets of this machine, and which one a call takes.

#include "dispatch.h"

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
