// What an instruction set has to offer.

#pragma once

#include "attention_task.h"
#include "delta_rule_task.h"
#include "linear_scan_task.h"
#include "loop_task.h"
#include "matrix_memory_task.h"
#include "task.h"

namespace jaxrnn {

constexpr int kChains = 12;  // of 16 registers, and enough for what a chain waits

template <class T>
struct Kernels {
  Kernel<T> recurrence;
  AttentionKernel<T> attention;
  LinearScanKernel<T> linear_scan;
  LoopKernel<T> loop;
  MatrixMemoryKernel<T> matrix_memory;
  DeltaRuleKernel<T> delta_rule;
  T (*multiply_adds)(int64_t rounds);  // kChains vectors of them a round
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
