// Attention as XLA calls it: cuts a call into heads, chunks and pairs, and runs them.

#include "dispatch.h"
#include "schedule.h"
#include "scratch.h"

namespace ffi = xla::ffi;

namespace jaxrnn {
namespace {

struct Sizes {
  int64_t window;
  bool placed, save;
};

// The arrays of a call: [T, B, N, D], but for the places, [B, T] or [B, S], and sums, [T, B, N].
template <class T>
struct AttentionCall {
  AttentionCall(const Sizes& sizes, Reader read, bool backward) : window(sizes.window) {
    constexpr int32_t kT = kSame<T>;
    members = read.members();
    q = read.argument("q", {kAnySize, kAnySize, kAnySize, kAnySize}, kAnyFloat);
    require(kT == kF64 || q.storage != kF64, "q: float64 for a float32 computation");
    steps = q.shape[0], B = q.shape[1], N = q.shape[2], D = q.shape[3];
    k = read.argument("k", {kAnySize, B, N, D}, q.storage);
    keys = k.shape[0];
    v = read.argument("v", k.shape, q.storage);
    if (sizes.placed) {
      q_position = read.argument("q_position", {B, steps}, kInt);
      q_episode = read.argument("q_episode", {B, steps}, kInt);
      k_position = read.argument("k_position", {B, keys}, kInt);
      k_episode = read.argument("k_episode", {B, keys}, kInt);
    } else {
      require(steps == keys, "k: another number of steps than q");
    }
    require(window > 0, "window: not positive");
    if (backward) {
      ys = read.argument("ys", q.shape, q.storage);
      sums = read.argument("sums", {steps, B, N}, kT);
      d_ys = read.argument("d_ys", q.shape, q.storage);
      d_q = read.result("d_q", q.shape, q.storage);
      d_k = read.result("d_k", k.shape, q.storage);
      d_v = read.result("d_v", k.shape, q.storage);
    } else {
      ys = read.result("ys", q.shape, q.storage);
      if (sizes.save) sums = read.result("sums", {steps, B, N}, kT);
    }
    read.end();
  }

  int64_t count() const {
    int64_t all = B * N;
    for (int64_t n : members) all *= n;
    return all;
  }

  Attention<T> task(int64_t index) const {
    int64_t head = index % N, row = index / N % B, member = index / N / B;
    auto array = [&](const Buffer& from) -> Array {
      if (!from.data) return {nullptr, 0, 0};
      return {from.member(member, members) + (row * N + head) * D * from.bytes, B * N * D, 0};
    };
    auto place = [&](const Buffer& from) -> const int32_t* {
      if (!from.data) return nullptr;
      return reinterpret_cast<const int32_t*>(from.member(member, members)) + row * from.shape[1];
    };
    Attention<T> a{};
    a.queries = steps, a.keys = keys, a.width = D, a.window = window, a.storage = q.storage;
    a.q = array(q), a.k = array(k), a.v = array(v), a.ys = array(ys), a.d_ys = array(d_ys);
    a.d_q = array(d_q), a.d_k = array(d_k), a.d_v = array(d_v);
    if (sums.data) a.sums = reinterpret_cast<T*>(sums.member(member, members)) + row * N + head;
    a.sums_step = B * N;
    a.q_position = place(q_position), a.q_episode = place(q_episode);
    a.k_position = place(k_position), a.k_episode = place(k_episode);
    return a;
  }

  int64_t window, steps, keys, B, N, D;
  std::vector<int64_t> members;
  Buffer q, k, v, q_position, q_episode, k_position, k_episode, ys, sums, d_ys, d_q, d_k, d_v;
};

// Threads for a call: one, if it is over before another has come.
template <class T>
int workers_of(const AttentionCall<T>& call, ffi::ThreadPool& pool) {
  double products = static_cast<double>(call.count()) * call.steps * call.keys * call.D;
  return products < 1e6 ? 1 : threads_of(pool.num_threads());
}

template <class T>
void run_forward(const AttentionCall<T>& call, ffi::ThreadPool& pool, const Isa& isa) {
  int64_t heads = call.count(), most = workers_of(call, pool);
  // What a query gets depends on no other one: chunks are as small as it takes to occupy everybody.
  int64_t size = kForwardChunk;
  auto chunks = [&] { return (call.steps + size - 1) / size; };
  while (size > kBlock && heads * chunks() < 4 * most) size /= 2;
  int64_t count = chunks(), tasks = heads * count;
  int workers = std::min(most, tasks);
  Scratch<T> scratch(workers, forward_scratch<T>(call.D));
  each_alone(
      tasks, workers, [&](auto work) { pool.Schedule(std::move(work)); },
      [&](int64_t i, int worker) {
        int64_t first = (count - 1 - i % count) * size;  // the last have the most keys
        isa.of<T>().attention.forward(call.task(i / count), first,
                                      std::min(size, call.steps - first), scratch.of(worker));
      });
}

template <class T>
void run_backward(const AttentionCall<T>& call, ffi::ThreadPool& pool, const Isa& isa) {
  int64_t heads = call.count(), most = workers_of(call, pool);
  int64_t pairs = pairs_of(call.steps, call.keys), phases = pairs + 1;
  bool alone = heads >= most;
  int workers = std::min(most, alone ? heads : pairs);
  Scratch<T> scratch(workers, backward_scratch<T>(call.D));
  Scratch<T> sums(alone ? workers : 1, gradient_sums<T>(call.steps, call.keys, call.D));
  auto schedule = [&](auto work) { pool.Schedule(std::move(work)); };
  auto* run = isa.of<T>().attention.backward;
  if (alone) {
    each_alone(heads, workers, schedule, [&](int64_t i, int worker) {
      Attention<T> a = call.task(i);
      for (int64_t phase = 0; phase < phases; ++phase)
        for (int64_t block = 0; block < pairs; ++block)
          run(a, block, phase, sums.of(worker), scratch.of(worker));
    });
  } else {
    for (int64_t i = 0; i < heads; ++i) {
      Attention<T> a = call.task(i);
      together(pairs, phases, workers, schedule, [&](int block, int64_t phase, int worker) {
        run(a, block, phase, sums.of(0), scratch.of(worker));
      });
    }
  }
}

template <class T>
ffi::Error run(const AttentionCall<T>& call, ffi::ThreadPool& pool, const Isa& isa,
               bool backward) {
  if (call.count() && backward) run_backward(call, pool, isa);
  if (call.count() && !backward && call.steps) run_forward(call, pool, isa);
  return ffi::Error::Success();
}

template <bool kBackward>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  int64_t window, bool placed, bool save, std::string_view isa) {
  return guarded(isa, [&](const Isa& isa) {
    Reader read(args, rets, 4);
    Sizes sizes{window, placed, save};
    if (rets.get<ffi::AnyBuffer>(0).value()->element_type() == ffi::F64)
      return run(AttentionCall<double>(sizes, read, kBackward), pool, isa, kBackward);
    return run(AttentionCall<float>(sizes, read, kBackward), pool, isa, kBackward);
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
                                    .Attr<int64_t>("window")  \
                                    .Attr<bool>("placed")     \
                                    .Attr<bool>("save")       \
                                    .Attr<std::string_view>("isa"))

JAXRNN_BINDING(attend_forward, false);
JAXRNN_BINDING(attend_backward, true);
