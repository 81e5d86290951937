// The matrix memory as XLA calls it: cuts a call into rows and heads, and runs them.

#include "dispatch.h"
#include "schedule.h"
#include "scratch.h"

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
  MatrixMemoryCall(const Options& is, Reader read, bool backward) : members(read.members()) {
    constexpr int32_t kT = kSame<T>;
    // The first result says what the arithmetic's type is, and the sizes but for time.
    const Reader::Shape any(4, kAnySize);
    Buffer first = read.result(backward ? "d_memory" : "final", any, kT);
    B = first.shape[0], N = first.shape[1];
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

  int64_t count() const {
    int64_t all = B * N;
    for (int64_t n : members) all *= n;
    return all;
  }

  MatrixMemory<T> head(int64_t index) const {
    int64_t head = index % N, row = index / N % B, member = index / N / B;
    MatrixMemory<T> out = task;
    auto of_head = [&](const Buffer& from, int64_t size) -> char* {
      if (!from.data) return nullptr;
      return from.member(member, members) + (row * N + head) * size * from.bytes;
    };
    auto series = [&](Series& to, const Buffer& from, int64_t size) {
      to = {of_head(from, size), from.storage, B * N * size};
    };
    auto numbers = [&](auto& to, const Buffer& from, int64_t size) {
      to = reinterpret_cast<T*>(of_head(from, size));
    };
    auto flags = [&](const Buffer& from) {
      return from.data ? from.member(member, members) + row : nullptr;
    };
    series(out.q, q, task.keys), series(out.k, k, task.keys), series(out.v, v, task.values);
    series(out.log_f, log_f, 1), series(out.log_i, log_i, 1);
    series(out.ys, ys, task.values), series(out.ms, ms, 1);
    series(out.d_q, d_q, task.keys), series(out.d_k, d_k, task.keys);
    series(out.d_v, d_v, task.values), series(out.d_ys, d_ys, task.values);
    series(out.d_ms, d_ms, 1), series(out.d_log_f, d_log_f, 1);
    series(out.d_log_i, d_log_i, 1);
    int64_t size = task.keys * task.values;
    numbers(out.memory, memory, size), numbers(out.m, m, 1);
    numbers(out.final_memory, final, size), numbers(out.final_m, final_m, 1);
    numbers(out.saved, saved, size), numbers(out.saved_m, saved_m, 1);
    numbers(out.d_final, d_final, size), numbers(out.d_final_m, d_final_m, 1);
    numbers(out.d_memory, d_memory, size), numbers(out.d_m, d_m, 1);
    out.mask = flags(mask), out.starts = flags(starts);
    return out;
  }

  static Buffer checked(Buffer buffer) {
    require(kSame<T> == kF64 || buffer.storage != kF64, "q: float64 for a float32 computation");
    return buffer;
  }

  std::vector<int64_t> members;
  int64_t B, N;
  MatrixMemory<T> task{};
  Buffer q, k, v, log_f, log_i, memory, m, ys, ms, final, final_m, saved, saved_m, mask, starts;
  Buffer d_q, d_k, d_v, d_log_f, d_log_i, d_memory, d_m, d_ys, d_ms, d_final, d_final_m;
};

template <class T>
ffi::Error run(const MatrixMemoryCall<T>& call, ffi::ThreadPool& pool,
               const MatrixMemoryKernel<T>& kernel, bool backward) {
  int64_t count = call.count(), threads = threads_of(pool.num_threads());
  if (!count) return ffi::Error::Success();
  const MatrixMemory<T>& task = call.task;
  double products = static_cast<double>(count) * task.steps * task.keys * task.values;
  // One, if it is over before another has come.
  int workers = products < 5e5 ? 1 : std::min(threads, count);
  Scratch<T> scratch(workers, memory_scratch<T>(task.keys, task.values, backward));
  each_alone(
      count, workers, [&](auto work) { pool.Schedule(std::move(work)); },
      [&](int64_t i, int worker) {
        (backward ? kernel.backward : kernel.forward)(call.head(i), scratch.of(worker));
      });
  return ffi::Error::Success();
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
