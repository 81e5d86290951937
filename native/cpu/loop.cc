// A loop whose step is made of parts as XLA calls it: checks the parts, and cuts the rows into tasks.

#include "call.h"
#include "dispatch.h"
#include "schedule.h"
#include "scratch.h"

namespace ffi = xla::ffi;

namespace jaxrnn {
namespace {

using Numbers32 = ProgramText::Span<int32_t>;

// A list of numbers, read from the front.
class Text {
 public:
  Text(Numbers32 all, const char* name) : at_(all.begin()), end_(all.end()), name_(name) {}

  // The next number, from `least` to `most`.
  int32_t next(int64_t least, int64_t most) {
    require(at_ < end_, name_, ": a number is missing");
    require(least <= *at_ && *at_ <= most, name_, ": a number that cannot be");
    return *at_++;
  }
  template <class Each>
  int32_t list(Each each) {
    int32_t count = next(0, 1 << 20);
    for (int i = 0; i < count; ++i) each();
    return count;
  }
  bool more() const { return at_ < end_; }

 private:
  const int32_t *at_, *end_;
  const char* name_;
};

// A call: its arrays, and what it says of parts, checked.
template <class T>
struct LoopCall {
  LoopCall(const ffi::Dictionary& attributes, Reader& read) : members(read.members()) {
    auto numbers = [&](const char* name) { return named<Numbers32>(attributes, name); };
    constexpr int32_t kT = kSame<T>, kMost = 1 << 24;
    loop.steps = named<int64_t>(attributes, "steps");
    int32_t reverse = named<int32_t>(attributes, "reverse");
    require(loop.steps >= 0 && (reverse == 0 || reverse == 1), "steps or reverse: out of range");
    loop.reverse = reverse;

    auto widths = numbers("widths");
    loop.buffers = widths.size(), loop.widths = widths.begin();
    require(loop.buffers > 0 && loop.buffers <= kMaxRegisters, "widths: how many");
    for (int32_t width : widths) require(0 < width && width < kMost, "widths: out of range");

    // The arrays: weights, what is carried, inputs; then what is carried in the end, and outputs.
    int32_t weight_count = named<int32_t>(attributes, "weights");
    require(weight_count >= 0, "weights: how many");
    for (int i = 0; i < weight_count; ++i)
      weights.push_back(read.argument("a weight", {kAnySize, kAnySize}, kT));
    auto carry = numbers("carry");
    require(carry.size() % kCarry == 0 && carry.size() > 0, "carry: an unexpected length");
    int32_t arrays = 0;
    for (size_t i = 0; i < carry.size(); i += kCarry) {
      require(carry.begin()[i] >= 0 && carry.begin()[i] < kMost, "carry: which array");
      arrays = std::max(arrays, carry.begin()[i] + 1);
    }
    rows = -1;
    for (int i = 0; i < arrays; ++i) {
      state.push_back(read.argument("a state", {rows, kAnySize}, kT));
      rows = state.back().shape[0];
    }
    auto kinds = numbers("kinds");
    for (int32_t kind : kinds) {
      Reader::Shape shape{kAnySize};
      if (kind > 0) shape.insert(shape.begin(), rows);
      if (kind > 1) shape.insert(shape.begin(), loop.steps);
      inputs.push_back(read.argument("an input", shape, kT));
    }
    for (const Buffer& each : state)
      final.push_back(read.result("a final state", {rows, each.shape[1]}, kT));
    while (read.more_results())
      outputs.push_back(read.result("an output", {loop.steps, rows, kAnySize}, kT));
    read.end();
    loop.output_count = outputs.size();
    auto flags = [&](const char* name) {
      int32_t which = named<int32_t>(attributes, name);
      require(-1 <= which && which < static_cast<int32_t>(inputs.size()), name, ": no such input");
      require(which < 0 || inputs[which].shape == Reader::Shape{loop.steps, rows, 1}, name,
              ": an input that has no number for each step and row");
      return which;
    };
    loop.mask = flags("mask"), loop.starts = flags("starts");

    loop.carried = carry.size() / kCarry, loop.carry = carry.begin();
    Text stretches(carry, "carry");
    for (int i = 0; i < loop.carried; ++i) {
      const Buffer& array = state[stretches.next(0, arrays - 1)];
      int32_t offset = stretches.next(0, kMost), to = buffer(stretches), from = buffer(stretches);
      require(widths.begin()[to] == widths.begin()[from] &&
                  offset + widths.begin()[to] <= array.shape[1],
              "carry: a stretch that its array has not");
    }
    take_programs(attributes);
    auto parts = numbers("parts");
    loop.parts = parts.begin(), loop.end = parts.end();
    Text text(parts, "parts");
    while (text.more()) check_part(text);
  }

  // Of some rows of a member.
  struct Task {
    Loop loop;
    std::vector<Weight> weights;
    std::vector<Array> state, final, inputs, outputs;
  };

  void take(Task& task, int64_t member, int64_t first, int64_t count) const {
    task.loop = loop;
    task.loop.rows = count, task.loop.programs = programs.data();
    task.weights.clear();
    for (const Buffer& w : weights)
      task.weights.push_back({w.member(member, members), w.shape[0], w.shape[1]});
    auto place = [&](std::vector<Array>& to, const std::vector<Buffer>& from) {
      to.clear();
      for (const Buffer& each : from) {
        int64_t width = each.shape.back(), axes = each.shape.size();
        Array array{each.member(member, members), axes > 2 ? rows * width : 0,
                    axes > 1 ? width : 0};
        array.data += first * array.row * each.bytes;
        to.push_back(array);
      }
    };
    place(task.state, state), place(task.final, final);
    place(task.inputs, inputs), place(task.outputs, outputs);
    task.loop.weights = task.weights.data();
    task.loop.state = task.state.data(), task.loop.final = task.final.data();
    task.loop.inputs = task.inputs.data(), task.loop.outputs = task.outputs.data();
  }

  std::vector<int64_t> members;
  Loop loop{};
  int64_t rows, multiply_adds = 0;  // of a row and step
  std::vector<Program> programs;
  std::vector<int32_t> results;  // of each program
  std::vector<Buffer> weights, state, inputs, final, outputs;

 private:
  // Numbers of each program: registers, inputs, instructions, results, constants.
  void take_programs(const ffi::Dictionary& attributes) {
    auto sizes = named<Numbers32>(attributes, "sizes");
    auto instructions = named<Numbers32>(attributes, "programs");
    auto outputs = named<Numbers32>(attributes, "outputs");
    auto constants = named<ProgramText::Span<double>>(attributes, "constants");
    size_t i = 0, o = 0, c = 0;
    Text text(sizes, "sizes");
    auto part = [](auto all, size_t first, size_t count) {
      require(first + count <= all.size(), "programs: a list that is too short");
      return decltype(all)(all.begin() + first, count);
    };
    while (text.more()) {
      int32_t registers = text.next(0, kMaxRegisters), inputs = text.next(0, kMaxRegisters);
      size_t length = text.next(0, 1 << 20), made = text.next(1, kMaxRegisters),
             known = text.next(0, kMaxRegisters);
      ProgramText one{part(instructions, i, 5 * length), part(outputs, o, made),
                      part(constants, c, known)};
      programs.push_back(checked_program(one, registers, inputs, made));
      results.push_back(made);
      i += 5 * length, o += made, c += known;
    }
    loop.program_count = programs.size();
  }

  int32_t buffer(Text& text) const { return text.next(0, loop.buffers - 1); }

  // A list of (buffer, width): the sum of the widths.
  int64_t stretches(Text& text) const {
    int64_t width = 0;
    text.list([&] {
      int32_t which = buffer(text);
      width += text.next(loop.widths[which], loop.widths[which]);
    });
    return width;
  }

  void check_part(Text& text) {
    switch (text.next(kProduct, kProgram)) {
      case kProduct: {
        const Buffer& w = weights[text.next(0, static_cast<int64_t>(weights.size()) - 1)];
        int32_t transposed = text.next(0, 1);
        int64_t taken = stretches(text), given = stretches(text);
        require(taken == w.shape[transposed] && given == w.shape[!transposed],
                "parts: a product whose weight has another shape");
        multiply_adds += taken * given;
        return;
      }
      case kSum: {
        stretches(text);
        int32_t to = buffer(text);
        require(loop.widths[to] == 1, "parts: a sum into a buffer that is too wide");
        return;
      }
      case kProgram: {
        int32_t width = text.next(1, 1 << 24);
        int32_t number = text.next(0, static_cast<int64_t>(programs.size()) - 1);
        const Program& program = programs[number];
        int32_t taken = text.list([&] {
          int32_t source = text.next(kBuffer, kInput);
          int64_t has = source == kBuffer ? loop.buffers : static_cast<int64_t>(inputs.size());
          int32_t which = text.next(0, has - 1), offset = text.next(0, 1 << 24);
          int64_t wide = text.next(0, 1) ? 1 : width;
          require(source == kBuffer ? wide == loop.widths[which] && offset == 0
                                    : offset + wide <= inputs[which].shape.back(),
                  "parts: a program that takes what is not there");
        });
        require(taken == program.inputs, "parts: how much a program takes");
        text.list([&] {
          int32_t where = text.next(0, program.registers - 1);
          bool is_result = std::count(program.outputs, program.outputs + results[number], where);
          require(is_result, "parts: a register that is no result");
          int32_t source = text.next(kBuffer, kOutput);
          require(source != kInput, "parts: a program that writes an input");
          int64_t has = source == kBuffer ? loop.buffers : static_cast<int64_t>(outputs.size());
          int32_t which = text.next(0, has - 1), offset = text.next(0, 1 << 24);
          require(source == kBuffer ? width == loop.widths[which] && offset == 0 &&
                                          where >= program.inputs + program.constants
                                    : offset + width <= outputs[which].shape.back(),
                  "parts: a program that gives what has no place");
        });
        multiply_adds += static_cast<int64_t>(program.length) * width;
      }
    }
  }
};

template <class T>
ffi::Error run(const LoopCall<T>& call, ffi::ThreadPool& pool, const LoopKernel<T>& kernel) {
  int64_t members = 1, rows = call.rows;
  for (int64_t n : call.members) members *= n;
  if (!members || !rows) return ffi::Error::Success();
  int64_t threads = threads_of(pool.num_threads());
  // One, if it is over before another has come: some 100 us of work.
  if (members * rows * call.loop.steps * call.multiply_adds < (1 << 21)) threads = 1;
  // Rows of a task: their buffers should stay in the cache beside the weights, but a panel of
  // weights should serve several rows.
  constexpr int64_t kBytes = 1 << 18, kLeast = 24;
  typename LoopCall<T>::Task one;
  auto size_of = [&](int64_t count) {
    call.take(one, 0, 0, count);
    return kernel.size(one.loop) * static_cast<int64_t>(sizeof(T));
  };
  int64_t row = std::max<int64_t>(1, size_of(2) - size_of(1));
  int64_t most = std::max(kLeast, kBytes / row);
  int64_t slices = std::max((rows + most - 1) / most, std::min(rows, (threads + members - 1) / members));
  int64_t count = (rows + slices - 1) / slices;
  slices = (rows + count - 1) / count;
  int64_t tasks = members * slices;
  int workers = std::min(threads, tasks);
  int64_t elements = size_of(count) / sizeof(T);
  Scratch<T> scratch(workers, elements);
  for (int i = 0; i < workers; ++i) std::fill_n(scratch.of(i), elements, T(0));
  each_alone(
      tasks, workers, [&](auto work) { pool.Schedule(std::move(work)); },
      [&](int64_t i, int worker) {
        typename LoopCall<T>::Task task;
        int64_t first = i % slices * count;
        call.take(task, i / slices, first, std::min(count, rows - first));
        kernel.run(task.loop, scratch.of(worker));
      });
  return ffi::Error::Success();
}

ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  ffi::Dictionary attributes) {
  auto isa = attributes.get<std::string_view>("isa");
  if (isa.has_error()) return isa.error();
  return guarded(*isa, [&](const Isa& isa) {
    // The first result is what is carried, [B, W], in the type of the arithmetic.
    Reader read(args, rets, 2);
    if (rets.get<ffi::AnyBuffer>(0).value()->element_type() == ffi::F64)
      return run(LoopCall<double>(attributes, read), pool, isa.f64.loop);
    return run(LoopCall<float>(attributes, read), pool, isa.f32.loop);
  });
}

}  // namespace
}  // namespace jaxrnn

#pragma GCC visibility push(default)  // from here on, what Python looks up

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_loop, jaxrnn::handle,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs());
