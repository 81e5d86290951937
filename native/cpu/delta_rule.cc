// The memory with the delta rule as XLA calls it: cuts a call into rows and heads, and runs them.

#include "memory_call.h"

namespace ffi = xla::ffi;

namespace jaxrnn {
namespace {

// Which arrays a call has, and how many steps lie between two memories that are saved.
struct Options {
  bool before, reverse, decay, a, b, mask, starts;
  bool ys, save;       // forward
  bool d_final, d_ys;  // backward
  int32_t chunk;
};

// The arrays of a call: [T, B, N, ...], those without time [B, N, ...], flags [T, B].
template <class T>
struct DeltaRuleCall {
  DeltaRuleCall(const Options& is, Reader read, bool backward) {
    constexpr int32_t kT = kSame<T>;
    // The first result has all sizes but those of time.
    const Reader::Shape any(4, kAnySize);
    Buffer& first = backward ? d_state : final;
    first = read.result(backward ? "d_state" : "final", any, kT);
    const Reader::Shape memory = first.shape;
    const int64_t B = memory[0], N = memory[1], D = memory[2], E = memory[3];
    heads = {read.members(), B, N};
    require(0 < is.chunk && is.chunk <= kMemoryChunk, "chunk: more steps than the kernel's");
    q = read.argument("q", {kAnySize, B, N, D}, kT);
    const int64_t steps = q.shape[0], chunks = (steps + is.chunk - 1) / is.chunk;
    const Reader::Shape keys = q.shape, values{steps, B, N, E}, all{chunks, B, N, D, E};
    k = read.argument("k", keys, kT), v = read.argument("v", values, kT);
    Reader::Shape decays{steps, B, N, kAnySize};
    if (is.decay) {
      log_w = read.argument("log_w", decays, kT);
      decays = log_w.shape;
      require(decays[3] == 1 || decays[3] == D, "log_w: an unexpected shape");
    }
    require(is.b || !is.a, "a: there is no b");
    if (is.a) a = read.argument("a", keys, kT);
    if (is.b) b = read.argument("b", keys, kT);
    if (!backward) {
      state = read.argument("state", memory, kT);
      if (is.ys) ys = read.result("ys", values, kT);
      if (is.save) saved = read.result("saved", all, kT);
    } else {
      saved = read.argument("saved", all, kT);
      if (is.d_ys) d_ys = read.argument("d_ys", values, kT);
      if (is.d_final) d_final = read.argument("d_final", memory, kT);
      d_q = read.result("d_q", keys, kT), d_k = read.result("d_k", keys, kT);
      d_v = read.result("d_v", values, kT);
      if (is.decay) d_log_w = read.result("d_log_w", decays, kT);
      if (is.a) d_a = read.result("d_a", keys, kT);
      if (is.b) d_b = read.result("d_b", keys, kT);
    }
    if (is.mask) mask = read.argument("mask", {steps, B}, kFlag);
    if (is.starts) starts = read.argument("starts", {steps, B}, kFlag);
    read.end();
    task.steps = steps, task.keys = D, task.values = E, task.chunk = is.chunk;
    task.decays = is.decay ? decays[3] : 0;
    task.removal = is.a ? kRemovesApart : is.b ? kRemovesAtKey : kRemovesNothing;
    task.before = is.before, task.reverse = is.reverse;
    task.flags = B, task.saved_step = B * N * D * E;
  }

  DeltaRule<T> of(const Head& head) const {
    DeltaRule<T> out = task;
    int64_t D = task.keys, E = task.values, size = D * E;
    out.q = head.series(q, D), out.k = head.series(k, D), out.v = head.series(v, E);
    out.a = head.series(a, D), out.b = head.series(b, D), out.ys = head.series(ys, E);
    out.log_w = head.series(log_w, task.decays);
    out.d_q = head.series(d_q, D), out.d_k = head.series(d_k, D), out.d_v = head.series(d_v, E);
    out.d_a = head.series(d_a, D), out.d_b = head.series(d_b, D), out.d_ys = head.series(d_ys, E);
    out.d_log_w = head.series(d_log_w, task.decays);
    head.numbers(out.state, state, size), head.numbers(out.final_state, final, size);
    head.numbers(out.saved, saved, size), head.numbers(out.d_final, d_final, size);
    head.numbers(out.d_state, d_state, size);
    out.mask = head.flags(mask), out.starts = head.flags(starts);
    return out;
  }

  Heads heads;
  DeltaRule<T> task{};
  Buffer q, k, v, log_w, a, b, state, ys, final, saved, mask, starts;
  Buffer d_q, d_k, d_v, d_log_w, d_a, d_b, d_state, d_ys, d_final;
};

template <class T>
ffi::Error run(const DeltaRuleCall<T>& call, ffi::ThreadPool& pool,
               const DeltaRuleKernel<T>& kernel, bool backward) {
  const DeltaRule<T>& task = call.task;
  return each_head<T>(call.heads, static_cast<double>(task.steps) * task.keys * task.values,
                      delta_scratch(task, backward), pool, [&](const Head& head, T* scratch) {
                        (backward ? kernel.backward : kernel.forward)(call.of(head), scratch);
                      });
}

template <bool kBackward>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  bool before, bool reverse, bool decay, bool a, bool b, bool mask,
                  bool starts, bool ys, bool save, bool d_final, bool d_ys, int32_t chunk,
                  std::string_view isa) {
  return guarded(isa, [&](const Isa& isa) {
    Options is{before, reverse, decay, a, b, mask, starts, ys, save, d_final, d_ys, chunk};
    Reader read(args, rets, 4);
    if (rets.get<ffi::AnyBuffer>(0).value()->element_type() == ffi::F64)
      return run(DeltaRuleCall<double>(is, read, kBackward), pool, isa.f64.delta_rule, kBackward);
    return run(DeltaRuleCall<float>(is, read, kBackward), pool, isa.f32.delta_rule, kBackward);
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
                                    .Attr<bool>("before")                \
                                    .Attr<bool>("reverse")               \
                                    .Attr<bool>("decay")                 \
                                    .Attr<bool>("a")                     \
                                    .Attr<bool>("b")                     \
                                    .Attr<bool>("mask")                  \
                                    .Attr<bool>("starts")                \
                                    .Attr<bool>("ys")                    \
                                    .Attr<bool>("save")                  \
                                    .Attr<bool>("d_final")               \
                                    .Attr<bool>("d_ys")                  \
                                    .Attr<int32_t>("chunk")              \
                                    .Attr<std::string_view>("isa"))

JAXRNN_BINDING(delta_rule_forward, false);
JAXRNN_BINDING(delta_rule_backward, true);
