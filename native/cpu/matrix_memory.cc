// The matrix memory as XLA calls it: cuts a call into rows and heads, and runs them.

#include "memory_call.h"

namespace ffi = xla::ffi;

namespace jaxrnn {
namespace {

// Which arrays a call has.
struct Options {
  bool stabilised, reverse, mask, starts;
  bool ys, save;                         // forward
  bool d_final, d_final_m, d_ys, d_ms;   // backward
};

// The arrays of a call: [T, B, N, ...], those without time [B, N, ...], flags [T, B].
template <class T>
struct MatrixMemoryCall {
  MatrixMemoryCall(const Options& is, Reader read, bool backward) {
    constexpr int32_t kT = kSame<T>;
    // The first result says what the arithmetic's type is, and the sizes but for time.
    const Reader::Shape any(4, kAnySize);
    Buffer first = read.result(backward ? "d_memory" : "final", any, kT);
    const int64_t B = first.shape[0], N = first.shape[1];
    heads = {read.members(), B, N};
    task.keys = first.shape[2], task.values = first.shape[3];
    const Reader::Shape memory_shape = first.shape, m_shape{B, N};
    Buffer& m_first = backward ? d_m : final_m;
    (backward ? d_memory : final) = first;
    m_first = read.result("m", m_shape, kT);
    q = checked(read.argument("q", {kAnySize, B, N, task.keys}, kAnyFloat));
    int64_t steps = task.steps = q.shape[0];
    const Reader::Shape keys = q.shape, values{steps, B, N, task.values}, gates{steps, B, N};
    k = checked(read.argument("k", keys, kAnyFloat));
    v = checked(read.argument("v", values, kAnyFloat));
    log_f = read.argument("log_f", gates, kT), log_i = read.argument("log_i", gates, kT);
    int64_t chunks = (steps + kMemoryChunk - 1) / kMemoryChunk;
    const Reader::Shape saved_shape{chunks, B, N, task.keys, task.values};
    const Reader::Shape saved_m_shape{chunks, B, N};
    if (!backward) {
      memory = read.argument("memory", memory_shape, kT), m = read.argument("m", m_shape, kT);
      ms = read.result("ms", gates, kT);
      if (is.ys) ys = read.result("ys", values, kT);
      if (is.save) {
        saved = read.result("saved", saved_shape, kT);
        saved_m = read.result("saved m", saved_m_shape, kT);
      }
    } else {
      saved = read.argument("saved", saved_shape, kT);
      saved_m = read.argument("saved m", saved_m_shape, kT);
      if (is.d_ys) d_ys = read.argument("d_ys", values, kT);
      if (is.d_ms) d_ms = read.argument("d_ms", gates, kT);
      if (is.d_final) d_final = read.argument("d_final", memory_shape, kT);
      if (is.d_final_m) d_final_m = read.argument("d_final_m", m_shape, kT);
      d_q = read.result("d_q", keys, q.storage), d_k = read.result("d_k", keys, k.storage);
      d_v = read.result("d_v", values, v.storage);
      d_log_f = read.result("d_log_f", gates, kT), d_log_i = read.result("d_log_i", gates, kT);
    }
    if (is.mask) mask = read.argument("mask", {steps, B}, kFlag);
    if (is.starts) starts = read.argument("starts", {steps, B}, kFlag);
    read.end();
    task.stabilised = is.stabilised, task.reverse = is.reverse;
    task.flags = B, task.chunk = B * N * task.keys * task.values, task.chunk_m = B * N;
  }

  MatrixMemory<T> of(const Head& head) const {
    MatrixMemory<T> out = task;
    out.q = head.series(q, task.keys), out.k = head.series(k, task.keys);
    out.v = head.series(v, task.values);
    out.log_f = head.series(log_f, 1), out.log_i = head.series(log_i, 1);
    out.ys = head.series(ys, task.values), out.ms = head.series(ms, 1);
    out.d_q = head.series(d_q, task.keys), out.d_k = head.series(d_k, task.keys);
    out.d_v = head.series(d_v, task.values), out.d_ys = head.series(d_ys, task.values);
    out.d_ms = head.series(d_ms, 1), out.d_log_f = head.series(d_log_f, 1);
    out.d_log_i = head.series(d_log_i, 1);
    int64_t size = task.keys * task.values;
    head.numbers(out.memory, memory, size), head.numbers(out.m, m, 1);
    head.numbers(out.final_memory, final, size), head.numbers(out.final_m, final_m, 1);
    head.numbers(out.saved, saved, size), head.numbers(out.saved_m, saved_m, 1);
    head.numbers(out.d_final, d_final, size), head.numbers(out.d_final_m, d_final_m, 1);
    head.numbers(out.d_memory, d_memory, size), head.numbers(out.d_m, d_m, 1);
    out.mask = head.flags(mask), out.starts = head.flags(starts);
    return out;
  }

  static Buffer checked(Buffer buffer) {
    require(kSame<T> == kF64 || buffer.storage != kF64, "q: float64 for a float32 computation");
    return buffer;
  }

  Heads heads;
  MatrixMemory<T> task{};
  Buffer q, k, v, log_f, log_i, memory, m, ys, ms, final, final_m, saved, saved_m, mask, starts;
  Buffer d_q, d_k, d_v, d_log_f, d_log_i, d_memory, d_m, d_ys, d_ms, d_final, d_final_m;
};

template <class T>
ffi::Error run(const MatrixMemoryCall<T>& call, ffi::ThreadPool& pool,
               const MatrixMemoryKernel<T>& kernel, bool backward) {
  const MatrixMemory<T>& task = call.task;
  return each_head<T>(call.heads, static_cast<double>(task.steps) * task.keys * task.values,
                      memory_scratch<T>(task.keys, task.values, backward), pool,
                      [&](const Head& head, T* scratch) {
                        (backward ? kernel.backward : kernel.forward)(call.of(head), scratch);
                      });
}

template <bool kBackward>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  bool stabilised, bool reverse, bool mask, bool starts, bool ys, bool save,
                  bool d_final, bool d_final_m, bool d_ys, bool d_ms, std::string_view isa) {
  return guarded(isa, [&](const Isa& isa) {
    Options is{stabilised, reverse, mask, starts, ys, save, d_final, d_final_m, d_ys, d_ms};
    Reader read(args, rets, 4);
    if (rets.get<ffi::AnyBuffer>(0).value()->element_type() == ffi::F64)
      return run(MatrixMemoryCall<double>(is, read, kBackward), pool, isa.f64.matrix_memory,
                 kBackward);
    return run(MatrixMemoryCall<float>(is, read, kBackward), pool, isa.f32.matrix_memory,
               kBackward);
  });
}

}  // namespace
}  // namespace jaxrnn

#pragma GCC visibility push(default)  // from here on, what Python looks up

#define JAXRNN_BINDING(name, backward)                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_##name, jaxrnn::handle<backward>, \
                                ffi::Ffi::Bind()                         \
                                    .Ctx<ffi::ThreadPool>()              \
                                    .RemainingArgs()                     \
                                    .RemainingRets()                     \
                                    .Attr<bool>("stabilised")            \
                                    .Attr<bool>("reverse")               \
                                    .Attr<bool>("mask")                  \
                                    .Attr<bool>("starts")                \
                                    .Attr<bool>("ys")                    \
                                    .Attr<bool>("save")                  \
                                    .Attr<bool>("d_final")               \
                                    .Attr<bool>("d_final_m")             \
                                    .Attr<bool>("d_ys")                  \
                                    .Attr<bool>("d_ms")                  \
                                    .Attr<std::string_view>("isa"))

JAXRNN_BINDING(matrix_memory_forward, false);
JAXRNN_BINDING(matrix_memory_backward, true);
