// What an instruction set has to offer.

#pragma once

#include "attention_task.h"
#include "linear_scan_task.h"
#include "task.h"

namespace jaxrnn {

template <class T>
struct Kernels {
  Kernel<T> recurrence;
  AttentionKernel<T> attention;
  LinearScanKernel<T> linear_scan;
};

struct Isa {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;

  template <class T>
  const Kernels<T>& of() const {
    if constexpr (sizeof(T) == 4) return f32;
    else return f64;
  }
};

}  // namespace jaxrnn
