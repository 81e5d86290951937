// The kernel as XLA calls it: cuts a call into tasks, and runs them.

#include <cstdlib>
#include <cstring>

#include "dispatch.h"
#include "layout.h"
#include "schedule.h"
#include "scratch.h"

namespace ffi = xla::ffi;

namespace jaxrnn {

namespace {

template <class T>
ffi::Error run(const Call<T>& call, ffi::ThreadPool& pool, const Kernel<T>& kernel) {
  int threads = threads_of(pool.num_threads());
  auto schedule = [&](auto work) { pool.Schedule(std::move(work)); };
  auto* step = call.backward ? kernel.backward : kernel.forward;
  int64_t phases = call.T_ + 1 + call.backward;
  int64_t B = call.B, I = call.I, D = call.D, G = call.gates.count;
  // All heads add to one gradient of xs: then one after the other.
  int64_t chain = call.want_x ? call.N : 1, heads = call.member_count() * call.N / chain;
  if (!heads || !B || !D) {  // sums over no rows
    for (const Buffer* sum : {&call.d_w, &call.d_b, &call.d_r}) {
      int64_t bytes = sum->data ? call.member_count() * sum->bytes : 0;
      for (int64_t n : sum->shape) bytes *= n;
      if (bytes) std::memset(sum->data, 0, bytes);
    }
    return ffi::Error::Success();
  }

  // Rows of a batch are independent too. Cut it where the weights fit into every core's cache.
  int64_t slices = 1;
  if (threads > 1 && B >= 12 * threads && G * (I + D) * D * sizeof(T) <= (1 << 18)) {
    slices = std::max<int64_t>(threads, B / 96);
    if (call.backward) slices = std::min<int64_t>(slices, 4 * threads);
  }
  int64_t count = (B + slices - 1) / slices;
  slices = (B + count - 1) / count;
  int64_t tasks = heads * slices;
  bool alone = tasks >= threads;
  // A block for each worker, unless a step is over before the workers have met.
  int workers = alone ? std::min<int64_t>(threads, tasks) : (G * D * D * B < 12000 ? 1 : threads);
  Layout<T> layout(call, kernel.lanes, alone ? 1 : workers);
  int blocks = layout.blocks;
  if (!alone) workers = std::min(workers, blocks);

  Partial<T> partial(call, slices);
  auto task_of = [&](int64_t i) {
    int64_t slice = i / chain % slices, first = slice * count, head = i / chain / slices;
    int64_t per_member = call.N / chain;
    Task<T> t = call.task(head / per_member, head % per_member * chain + i % chain, first,
                          std::min(count, B - first));
    partial.place(t, slice);
    return t;
  };
  int arenas = alone ? workers : 1;  // tasks under way at one time
  std::vector<Block<T>> every(arenas * blocks);
  // The last slice may have fewer rows than the others, and take more: its chunks have more steps.
  Task<T> like = task_of(0), last = task_of((slices - 1) * chain);
  int64_t task_bytes = std::max(layout.place(like, every.data(), nullptr),
                                layout.place(last, every.data(), nullptr));
  int64_t scratch_bytes = up(scratch_size(call.program, I) * sizeof(T));
  Memory memory(arenas * task_bytes + workers * scratch_bytes);
  auto scratch = [&](int worker) {
    return reinterpret_cast<T*>(memory.get() + arenas * task_bytes + worker * scratch_bytes);
  };
  for (int worker = 0; worker < workers; ++worker) fill_constants(call.program, scratch(worker));

  if (alone) {
    each_alone(tasks, workers, schedule, [&](int64_t i, int worker) {
      for (int64_t link = i * chain; link < (i + 1) * chain; ++link) {
        Task<T> t = task_of(link);
        layout.place(t, &every[worker * blocks], memory.get() + worker * task_bytes);
        for (int64_t phase = 0; phase < phases; ++phase)
          for (int block = 0; block < blocks; ++block) step(t, block, phase, scratch(worker));
      }
    });
  } else {
    for (int64_t i = 0; i < tasks * chain; ++i) {
      Task<T> t = task_of(i);
      layout.place(t, every.data(), memory.get());
      together(blocks, phases, workers, schedule, [&](int block, int64_t phase, int worker) {
        step(t, block, phase, scratch(worker));
      });
    }
  }
  partial.sum();
  return ffi::Error::Success();
}

template <bool kBackward>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  ffi::Dictionary attributes) {
  auto isa = attributes.get<std::string_view>("isa");
  if (isa.has_error()) return isa.error();
  return guarded(*isa, [&](const Isa& isa) {
    // The first result of either is a state, [B, H], in the type of the arithmetic.
    Reader read(args, rets, 2);
    if (rets.get<ffi::AnyBuffer>(0).value()->element_type() == ffi::F64)
      return run(Call<double>(attributes, read, kBackward), pool, isa.f64.recurrence);
    return run(Call<float>(attributes, read, kBackward), pool, isa.f32.recurrence);
  });
}

// The program alone, for tests: arrays [K] in the type of the first.
template <class T>
ffi::Error evaluate(const Kernel<T>& kernel, const Program& program, Reader read, int64_t count,
                    int64_t results) {
  std::vector<const T*> inputs;
  std::vector<T*> outputs;
  for (int i = 0; i < program.inputs; ++i)
    inputs.push_back(reinterpret_cast<T*>(read.argument("an input", {count}, kSame<T>).data));
  for (int i = 0; i < results; ++i)
    outputs.push_back(reinterpret_cast<T*>(read.result("a result", {count}, kSame<T>).data));
  std::vector<T> scratch(scratch_size(program, 0));
  fill_constants(program, scratch.data());
  FlushSubnormals flush;
  kernel.evaluate(program, inputs.data(), outputs.data(), count, results, scratch.data());
  return ffi::Error::Success();
}

ffi::Error handle_evaluate(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t registers,
                           ffi::Span<const int32_t> instructions,
                           ffi::Span<const double> constants, ffi::Span<const int32_t> outputs,
                           std::string_view isa) {
  ProgramText text{instructions, outputs, constants};
  return guarded(isa, [&](const Isa& isa) {
    Reader read(args, rets, 1);
    int32_t most = std::clamp<int64_t>(registers, 0, kMaxRegisters + 1);
    Program program = checked_program(text, most, args.size(), rets.size());
    auto first = rets.get<ffi::AnyBuffer>(0).value();
    int64_t count = first->dimensions().back();
    if (first->element_type() == ffi::F64)
      return evaluate(isa.f64.recurrence, program, read, count, rets.size());
    return evaluate(isa.f32.recurrence, program, read, count, rets.size());
  });
}

}  // namespace
}  // namespace jaxrnn

#pragma GCC visibility push(default)  // from here on, what Python looks up

#define JAXRNN_BINDING(name, backward)                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                         \
      jaxrnn_##name, jaxrnn::handle<backward>,           \
      ffi::Ffi::Bind()                                   \
          .Ctx<ffi::ThreadPool>()                        \
          .RemainingArgs()                               \
          .RemainingRets()                               \
          .Attrs())

JAXRNN_BINDING(forward, false);
JAXRNN_BINDING(backward, true);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_evaluate, jaxrnn::handle_evaluate,
                              ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("registers")
                                  .Attr<ffi::Span<const int32_t>>("program")
                                  .Attr<ffi::Span<const double>>("constants")
                                  .Attr<ffi::Span<const int32_t>>("outputs")
                                  .Attr<std::string_view>("isa"));

// Of which operations a program can be made, in the order of their numbers: "add,sub,...".
extern "C" const char* jaxrnn_operations() {
#define OP(name, result) #name ","
  return JAXRNN_OPERATIONS(OP);
#undef OP
}

// What the kernel was made for.
extern "C" {
extern const int32_t jaxrnn_most_states = jaxrnn::kMaxStates;
extern const int32_t jaxrnn_most_gates = jaxrnn::kMaxGates;
extern const int32_t jaxrnn_most_unit_weights = jaxrnn::kMaxUnit;
extern const int32_t jaxrnn_most_registers = jaxrnn::kMaxRegisters;
}
