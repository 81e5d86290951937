// The linear recurrence as XLA calls it: cuts a call's columns into tasks, and runs them.

#include "dispatch.h"
#include "schedule.h"
#include "scratch.h"

namespace ffi = xla::ffi;

namespace jaxrnn {
namespace {

// Which arrays a call has.
struct Options {
  int64_t steps;
  bool constant, reverse, mask, starts;
  bool hs, before;      // forward: made; backward: the states come from one of them, if from any
  bool d_final, d_hs, d_a, d_b;  // backward
};

// The arrays of a call: [T, R, W], those without time [R, W], constant factors [W], flags [T, R].
template <class T>
struct LinearScanCall {
  LinearScanCall(const Options& is, Reader& read, bool backward) : members(read.members()) {
    // The first result says what the arithmetic's type is, and how many rows and channels there are.
    Buffer first = read.result(backward ? "d_h0" : "final", {kAnySize, kAnySize}, kAnyNumber);
    scan.steps = is.steps, scan.rows = first.shape[0], scan.width = first.shape[1];
    scan.columns = scan.rows * scan.width;
    scan.constant = is.constant, scan.reverse = is.reverse, scan.complex = first.complex;
    require(scan.steps >= 0, "steps: negative");
    const Reader::Shape steps{scan.steps, scan.rows, scan.width}, state{scan.rows, scan.width};
    const Reader::Shape factors = is.constant ? Reader::Shape{scan.width} : steps;
    auto argument = [&](const char* name, const Reader::Shape& shape) {
      return checked(name, read.argument(name, shape, kAnyNumber));
    };
    auto result = [&](const char* name, const Reader::Shape& shape) {
      return checked(name, read.result(name, shape, kAnyNumber));
    };
    a = argument("a", factors);
    if (!backward) {
      final = first;
      b = argument("b", steps), h0 = argument("h0", state);
      if (is.hs) hs = result("hs", steps);
      if (is.before) before = result("before", steps);
    } else {
      d_h0 = first;
      if (is.hs) h0 = argument("h0", state), hs = argument("hs", steps);
      if (is.before) before = argument("before", steps);
      require(!is.d_a || is.hs || is.before, "d_a: the states are missing");
      if (is.d_final) d_final = argument("d_final", state);
      if (is.d_hs) d_hs = argument("d_hs", steps);
      if (is.d_b) d_b = result("d_b", steps);
      if (is.d_a) d_a = result("d_a", is.constant ? state : steps);
    }
    if (is.mask) mask = read.argument("mask", {scan.steps, scan.rows}, kFlag);
    if (is.starts) starts = read.argument("starts", {scan.steps, scan.rows}, kFlag);
    read.end();
    // What is copied is of the arithmetic's type.
    for (const Buffer* each : {&first, backward ? &first : &before})
      require(!each->data || each->storage == kSame<T>, "before: an unexpected type");
    // Without flags, rows are no different from channels.
    if (!is.mask && !is.starts && !is.constant) scan.width = scan.columns, scan.rows = 1;
  }

  LinearScan member(int64_t index) const {
    LinearScan out = scan;
    auto at = [&](const Buffer& from) {
      return from.data ? from.member(index, members) : nullptr;
    };
    auto take = [&](Numbers& to, const Buffer& from) { to = {at(from), from.storage}; };
    take(out.a, a), take(out.b, b), take(out.h0, h0), take(out.hs, hs), take(out.final, final);
    take(out.before, before), take(out.d_a, d_a), take(out.d_b, d_b), take(out.d_h0, d_h0);
    take(out.d_hs, d_hs), take(out.d_final, d_final);
    out.mask = at(mask), out.starts = at(starts);
    return out;
  }

  Buffer checked(const char* name, Buffer buffer) const {
    require(buffer.complex == scan.complex && (kSame<T> == kF64 || buffer.storage != kF64), name,
            ": an unexpected type");
    return buffer;
  }

  std::vector<int64_t> members;
  LinearScan scan{};
  Buffer a, b, h0, hs, final, before, d_a, d_b, d_h0, d_hs, d_final, mask, starts;
};

template <class T>
void run(const LinearScanCall<T>& call, ffi::ThreadPool& pool, const LinearScanKernel<T>& kernel,
         bool backward) {
  int64_t members = 1, columns = call.scan.columns;
  for (int64_t n : call.members) members *= n;
  if (!members || !columns) return;
  int64_t threads = threads_of(pool.num_threads());
  // One, if it is over before another has come: some 100 us of work.
  if (members * columns * call.scan.steps < (1 << 19)) threads = 1;
  // As wide as the cache allows, but enough for every thread.
  int64_t wide = (columns * members + threads - 1) / threads;
  wide = std::min(kScanColumns, (wide + kScanLine - 1) / kScanLine * kScanLine);
  int64_t parts = (columns + wide - 1) / wide;
  int workers = std::min(threads, members * parts);
  Scratch<T> scratch(workers, kScanArrays * kScanColumns);
  each_alone(
      members * parts, workers, [&](auto work) { pool.Schedule(std::move(work)); },
      [&](int64_t i, int worker) {
        int64_t first = i % parts * wide;
        (backward ? kernel.backward : kernel.forward)(call.member(i / parts), first,
                                                      std::min(wide, columns - first),
                                                      scratch.of(worker));
      });
}

template <bool kBackward>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  int64_t steps, bool constant, bool reverse, bool mask, bool starts, bool hs,
                  bool before, bool d_final, bool d_hs, bool d_a, bool d_b, std::string_view isa) {
  return guarded(isa, [&](const Isa& isa) {
    Options is{steps, constant, reverse, mask, starts, hs, before, d_final, d_hs, d_a, d_b};
    Reader read(args, rets, 2);
    auto type = rets.get<ffi::AnyBuffer>(0).value()->element_type();
    if (type == ffi::F64 || type == ffi::C128)
      run(LinearScanCall<double>(is, read, kBackward), pool, isa.f64.linear_scan, kBackward);
    else
      run(LinearScanCall<float>(is, read, kBackward), pool, isa.f32.linear_scan, kBackward);
    return ffi::Error::Success();
  });
}

}  // namespace
}  // namespace jaxrnn

#pragma GCC visibility push(default)  // from here on, what Python looks up

#define JAXRNN_BINDING(name, backward)                        \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_##name, jaxrnn::handle<backward>, \
                                ffi::Ffi::Bind()              \
                                    .Ctx<ffi::ThreadPool>()   \
                                    .RemainingArgs()          \
                                    .RemainingRets()          \
                                    .Attr<int64_t>("steps")   \
                                    .Attr<bool>("constant")   \
                                    .Attr<bool>("reverse")    \
                                    .Attr<bool>("mask")       \
                                    .Attr<bool>("starts")     \
                                    .Attr<bool>("hs")         \
                                    .Attr<bool>("before")     \
                                    .Attr<bool>("d_final")    \
                                    .Attr<bool>("d_hs")       \
                                    .Attr<bool>("d_a")        \
                                    .Attr<bool>("d_b")        \
                                    .Attr<std::string_view>("isa"))

JAXRNN_BINDING(linear_scan_forward, false);
JAXRNN_BINDING(linear_scan_backward, true);
