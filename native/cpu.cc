// The kernel as XLA calls it: takes buffers apart into tasks, and runs them.

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "operations.h"
#include "schedule.h"
#include "task.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxrnn {

#if defined(__x86_64__)
extern const Isa baseline, avx2, avx512;
#elif defined(__aarch64__)
extern const Isa neon;
#else
extern const Isa baseline;
#endif

namespace {

// The instruction sets of this machine, the best first.
std::vector<const Isa*> available() {
#if defined(__x86_64__)
  std::vector<const Isa*> found;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2);
  found.push_back(&baseline);
  return found;
#elif defined(__aarch64__)
  return {&neon};
#else
  return {&baseline};
#endif
}

const Isa* find_isa(std::string_view name) {
  static const std::vector<const Isa*> found = available();
  if (name.empty()) return found.front();
  for (const Isa* isa : found)
    if (name == isa->name) return isa;
  return nullptr;
}

template <class T>
const Kernel<T>& kernel_of(const Isa& isa);
template <>
const Kernel<float>& kernel_of(const Isa& isa) {
  return isa.f32;
}
template <>
const Kernel<double>& kernel_of(const Isa& isa) {
  return isa.f64;
}

// One buffer: [...members, ...own dimensions]. A member dimension of 1 is shared by all members.
struct Buffer {
  char* data = nullptr;
  std::vector<int64_t> shape;  // its own dimensions
  std::vector<int64_t> members, strides;
  int32_t storage = kF32;
  int64_t bytes = 0;  // of an element

  char* member(int64_t index, const std::vector<int64_t>& sizes) const {
    int64_t offset = 0;
    for (size_t i = sizes.size(); i-- > 0; index /= sizes[i])
      offset += index % sizes[i] * strides[i];
    return data + offset * bytes;
  }
};

struct Bad : std::string {
  using std::string::string;
};

template <class Any>
Buffer buffer(const Any& any, size_t rank, size_t member_rank) {
  Buffer out;
  out.data = static_cast<char*>(any.untyped_data());
  auto dimensions = any.dimensions();
  if (dimensions.size() != rank + member_rank) throw Bad("a buffer of an unexpected rank");
  out.members.assign(dimensions.begin(), dimensions.begin() + member_rank);
  out.shape.assign(dimensions.begin() + member_rank, dimensions.end());
  switch (any.element_type()) {
    case ffi::F32: out.storage = kF32, out.bytes = 4; break;
    case ffi::F64: out.storage = kF64, out.bytes = 8; break;
    case ffi::BF16: out.storage = kBF16, out.bytes = 2; break;
    case ffi::F16: out.storage = kF16, out.bytes = 2; break;
    case ffi::PRED: out.storage = -1, out.bytes = 1; break;
    default: throw Bad("a buffer of an unexpected type");
  }
  int64_t stride = 1;
  for (int64_t n : out.shape) stride *= n;
  out.strides.resize(member_rank);
  for (size_t i = member_rank; i-- > 0; stride *= out.members[i])
    out.strides[i] = out.members[i] == 1 ? 0 : stride;
  return out;
}

// What a call's attributes say; the arrays belong to the program.
struct Attributes {
  ffi::Span<const int32_t> sizes;  // in the order of Call's members
  ffi::Span<const int32_t> program, outputs, input, recurrent, part, place;
  ffi::Span<const double> constants;
  std::string_view isa;
};

template <class T>
struct Call {
  Call(const Attributes& a, bool backward) : backward(backward) {
    if (a.sizes.size() != 17) throw Bad("attribute sizes");
    int32_t registers;
    int i = 0;
    for (int32_t* to : {&states, &unit, &has_mask, &has_starts, &has_d_ys, &has_d_final, &reverse,
                        &save, &kept, &batch_first, &registers, &program.inputs, &parts, &again,
                        &want_x, &want_w, &want_r})
      *to = a.sizes.begin()[i++];
    gates.count = a.input.size(), gates.slots = a.part.size(), gates.parts = parts;
    gates.input = a.input.begin(), gates.recurrent = a.recurrent.begin();
    gates.part = a.part.begin(), gates.place = a.place.begin();
    program.instructions = reinterpret_cast<const Instruction*>(a.program.begin());
    program.length = a.program.size() / 5;
    program.registers = registers;
    program.constants = a.constants.size(), program.values = a.constants.begin();
    program.outputs = a.outputs.begin();
    if (states < 1 || states > kMaxStates || unit > kMaxUnit || gates.count > kMaxGates ||
        parts > kMaxParts)
      throw Bad("more states, gates or weights than the kernel was made for");
  }

  bool backward;
  int32_t states, unit, has_mask, has_starts, has_d_ys, has_d_final, reverse, save, kept,
      batch_first, parts, again, want_x, want_w, want_r;
  Gates gates;
  Program program;
  // Arguments and results, in this order.
  Buffer xs, w, b, r, mask, starts, ys, d_ys;
  std::vector<Buffer> units, state, initial, packed, before, d_final;
  std::vector<Buffer> final, d_state, d_initial, d_unit;
  Buffer d_w, d_b, d_r, d_xs;
  std::vector<int64_t> members;
  int64_t T_, B, I, H, N, D;

  int64_t member_count() const {
    int64_t count = 1;
    for (int64_t n : members) count *= n;
    return count;
  }

  void measure(const Buffer& like) {  // [T, B, H] or [B, T, H]; a result, so it has all members
    T_ = like.shape[batch_first], B = like.shape[!batch_first], H = like.shape[2];
    members = like.members;
    N = r.shape[0], D = r.shape[1];
    I = w.shape[0];
    if (N * D != H || r.shape[2] != gates.count || r.shape[3] != D) throw Bad("the shape of r");
  }

  // An array [T, B, K] or [B, T, K], from row `first` and column `column` on.
  Array sequence(const Buffer& from, int64_t member, int64_t first, int64_t column, int64_t width,
                 bool batch_first) const {
    if (!from.data) return {nullptr, 0, 0};
    Array out;
    out.time = batch_first ? width : B * width, out.row = batch_first ? T_ * width : width;
    out.data = from.member(member, members) + (first * out.row + column) * from.bytes;
    return out;
  }

  Array rows(const Buffer& from, int64_t member, int64_t first, int64_t column) const {
    if (!from.data) return {nullptr, 0, 0};
    return {from.member(member, members) + (first * H + column) * from.bytes, 0, H};
  }

  static int64_t up(int64_t bytes) { return (bytes + 127) / 128 * 128; }

  // How the units are cut into blocks, for some number of workers at one task.
  void cut(int lanes, int workers) {
    int64_t vectors = (D + lanes - 1) / lanes, widest = kWidth / lanes;
    blocks = std::max((vectors + widest - 1) / widest, std::min<int64_t>(vectors, workers));
    lanes_ = lanes;
  }

  Block<T> block_of(int i) const {
    int64_t vectors = (D + lanes_ - 1) / lanes_;
    int64_t first = vectors * i / blocks * lanes_, last = vectors * (i + 1) / blocks * lanes_;
    Block<T> out{};
    out.first = first, out.width = std::min(last, D) - first, out.padded = last - first;
    int64_t all = (I + lanes_ - 1) / lanes_;
    first = all * i / blocks * lanes_, last = all * (i + 1) / blocks * lanes_;
    out.x_first = first, out.x_width = std::min(last, I) - first, out.x_padded = last - first;
    return out;
  }

  // Lays a task of `count` rows out in memory; with no memory, only counts the bytes.
  int64_t lay_out(Task<T>* task, Block<T>* block, int64_t count, char* memory) const {
    int64_t used = 0;
    auto take = [&](T*& to, int64_t elements) {
      if (memory) to = reinterpret_cast<T*>(memory + used);
      used += up(elements * sizeof(T));
    };
    int64_t G = gates.count;
    for (T*& shared : task->shared) take(shared, count * row_of<T>(D * (backward ? G : 1)));
    for (int i = 0; backward && i < 2; ++i) {
      int64_t rows = task->chunk * count;
      if (want_x) take(task->d_gates[i], rows * row_of<T>(G * D));
      if (want_w) take(task->inputs[i], rows * row_of<T>(I));
      if (want_r) take(task->hidden[i], rows * row_of<T>(D));
    }
    for (int i = 0; i < blocks; ++i) {
      Block<T>& it = block[i];
      it = block_of(i);
      int64_t p = it.padded;
      int64_t rows = task->chunk * count;
      if (!backward || again) {
        take(it.w, G * I * p);
        take(it.r, G * D * p);
        take(it.bias, G * p);
      }
      take(it.gates, gates.slots * rows * p);
      take(it.unit, unit * kTile);
      take(it.state, states * count * p);
      if (!backward) {
        take(it.apart, G * count * p);
        continue;
      }
      take(it.back, G * D * p);
      take(it.initial, states * count * p);
      take(it.d_unit, unit * count * p);
      if (want_w) {
        take(it.d_w, G * I * p);
        take(it.d_b, G * p);
      }
      if (want_r) take(it.d_r, G * D * p);
      if (want_x) {
        take(it.x_back, G * D * it.x_padded);
        take(it.d_x, rows * it.x_padded);
      }
    }
    return used;
  }

  // The task of one head of one member, for rows `first` .. `first + count - 1`.
  Task<T> task(int64_t member, int64_t head, int64_t first, int64_t count) const {
    Task<T> t{};
    int64_t G = gates.count, column = head * D;
    t.T_ = T_, t.B = count, t.I = I, t.D = D, t.H = H;
    t.states = states, t.unit = unit, t.reverse = reverse, t.save = save, t.kept = kept;
    t.storage = xs.storage, t.again = again;
    t.want_x = want_x, t.want_w = want_w, t.want_r = want_r;
    // How many rows are multiplied at once: their gates should stay in the cache forward; backward,
    // the sums of the weights' gradients should not be read and written too often.
    int64_t rows_at_once = backward ? 256 : 96;
    t.chunk = std::clamp<int64_t>(rows_at_once / count, 1, T_);
    t.gates = gates, t.program = program;
    if (w.data) t.w = reinterpret_cast<T*>(w.member(member, members)) + column;
    if (b.data) t.b = reinterpret_cast<T*>(b.member(member, members)) + column;
    t.r = reinterpret_cast<T*>(r.member(member, members)) + head * D * G * D;
    for (int u = 0; u < unit; ++u)
      t.unit_weights[u] = reinterpret_cast<T*>(units[u].member(member, members)) + column;
    t.xs = sequence(xs, member, first, 0, I, batch_first);
    t.ys = sequence(ys, member, first, column, H, batch_first);
    t.d_ys = sequence(d_ys, member, first, column, H, batch_first);
    t.mask = sequence(mask, member, first, 0, 1, false);
    t.starts = sequence(starts, member, first, 0, 1, false);
    auto all = [&](Array* to, const std::vector<Buffer>& from) {
      for (size_t s = 0; s < from.size(); ++s) to[s] = rows(from[s], member, first, column);
    };
    all(t.state, state), all(t.initial, initial), all(t.final, backward ? d_final : final);
    all(t.d_state, d_state), all(t.d_initial, d_initial), all(t.d_unit, d_unit);
    for (size_t i = 0; i < before.size(); ++i)
      t.before[kept + i] = sequence(before[i], member, first, column, H, false);
    for (size_t i = 0; i < packed.size(); ++i)
      t.packed[i] = sequence(packed[i], member, first, column, packed[i].shape[2], false);
    if (want_x) t.d_xs = sequence(d_xs, member, first, 0, I, batch_first);
    t.d_xs_storage = d_xs.storage, t.add_x = head > 0;
    auto weight = [&](T*& to, const Buffer& from, int64_t offset) {
      if (from.data) to = reinterpret_cast<T*>(from.member(member, members)) + offset;
    };
    weight(t.d_w, d_w, column), weight(t.d_b, d_b, column), weight(t.d_r, d_r, head * D * G * D);
    return t;
  }

  ffi::Error run(ffi::ThreadPool& pool, const Isa& isa) {
    const Kernel<T>& kernel = kernel_of<T>(isa);
    int threads = std::max<int64_t>(1, pool.num_threads());
    auto schedule = [&](auto work) { pool.Schedule(std::move(work)); };
    int64_t phases = T_ + 1 + backward;
    // All heads add to one gradient of xs: then one after the other.
    int64_t chain = want_x ? N : 1, heads = member_count() * N / chain;
    if (!heads || !B || !D) {  // sums over no rows
      for (const Buffer* sum : {&d_w, &d_b, &d_r}) {
        int64_t bytes = sum->data ? member_count() * sum->bytes : 0;
        for (int64_t n : sum->shape) bytes *= n;
        if (bytes) std::memset(sum->data, 0, bytes);
      }
      return ffi::Error::Success();
    }
    auto* step = backward ? kernel.backward : kernel.forward;

    // Rows of a batch are independent too. Cut it where the weights fit into every core's cache.
    int64_t terms = gates.count * (I + D) * D, slices = 1;
    if (threads > 1 && B >= 12 * threads && terms * sizeof(T) <= (1 << 18)) {
      slices = std::max<int64_t>(threads, B / 96);
      if (backward) slices = std::min<int64_t>(slices, 4 * threads);
    }
    int64_t count = (B + slices - 1) / slices;
    slices = (B + count - 1) / count;
    int64_t tasks = heads * slices;
    bool alone = tasks >= threads;
    // A block for each worker, unless a step is over before the workers have met.
    int workers = alone ? std::min<int64_t>(threads, tasks)
                        : (gates.count * D * D * B < 12000 ? 1 : threads);
    cut(kernel.lanes, alone ? 1 : workers);
    workers = alone ? workers : std::min(workers, blocks);

    // Slices add to the gradients of the same weights: each has its own, summed at the end.
    Partial partial(*this, slices);
    auto task_of = [&](int64_t i) {
      int64_t slice = i / chain % slices, first = slice * count, head = i / chain / slices;
      int64_t per_member = N / chain;
      Task<T> t = task(head / per_member, head % per_member * chain + i % chain, first,
                       std::min(count, B - first));
      partial.place(t, slice);
      return t;
    };
    Task<T> like = task_of(0);
    std::vector<Block<T>> some(blocks);
    int64_t task_bytes = lay_out(&like, some.data(), count, nullptr);
    int64_t scratch_bytes = up(scratch_size(like) * sizeof(T));
    int arenas = alone ? workers : 1;
    int64_t bytes = arenas * task_bytes + workers * scratch_bytes;
    std::unique_ptr<char, decltype(&std::free)> memory(
        static_cast<char*>(std::aligned_alloc(128, up(bytes))), &std::free);
    if (!memory) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxrnn: out of memory");
    auto scratch = [&](int worker) {
      return reinterpret_cast<T*>(memory.get() + arenas * task_bytes + worker * scratch_bytes);
    };

    if (alone) {
      each_alone(tasks, workers, schedule, [&](int64_t i, int worker) {
        std::vector<Block<T>> own(blocks);
        for (int64_t link = i * chain; link < (i + 1) * chain; ++link) {
          Task<T> t = task_of(link);
          lay_out(&t, own.data(), count, memory.get() + worker * task_bytes);
          t.block = own.data(), t.blocks = blocks;
          for (int64_t phase = 0; phase < phases; ++phase)
            for (int block = 0; block < blocks; ++block) step(t, block, phase, scratch(worker));
        }
      });
    } else {
      for (int64_t i = 0; i < tasks * chain; ++i) {
        Task<T> t = task_of(i);
        lay_out(&t, some.data(), count, memory.get());
        t.block = some.data(), t.blocks = blocks;
        together(blocks, phases, workers, schedule, [&](int block, int64_t phase, int worker) {
          step(t, block, phase, scratch(worker));
        });
      }
    }
    partial.sum();
    return ffi::Error::Success();
  }

  // The gradients of the weights, once for each slice but the first, which has the results.
  struct Partial {
    Partial(const Call& call, int64_t slices) : slices(slices) {
      for (const Buffer* to : {&call.d_w, &call.d_b, &call.d_r}) {
        int64_t size = to->data ? call.member_count() : 0;
        for (int64_t n : to->shape) size *= n;
        results.push_back(reinterpret_cast<T*>(to->data));
        sizes.push_back(size);
        parts.emplace_back(size * (slices - 1));
      }
    }

    void place(Task<T>& task, int64_t slice) {
      if (slice == 0) return;
      int i = 0;
      for (T** to : {&task.d_w, &task.d_b, &task.d_r}) {
        if (*to) *to = parts[i].data() + sizes[i] * (slice - 1) + (*to - results[i]);
        ++i;
      }
    }

    void sum() {
      for (size_t i = 0; i < parts.size(); ++i)
        for (int64_t k = 0; k < static_cast<int64_t>(parts[i].size()); ++k)
          results[i][k % sizes[i]] += parts[i][k];
    }

    int64_t slices;
    std::vector<T*> results;
    std::vector<int64_t> sizes;
    std::vector<std::vector<T>> parts;
  };

  int blocks, lanes_;
};

// Asks for large pages: what a call writes is often new memory, and taking it in pages of 4 KiB
// takes longer than filling it. But where the kernel has to clear or to fetch them first (a virtual
// machine that gave its memory back to its host), large pages take longer still: so one in every
// eight is tried.
void in_large_pages(char* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20, kTried = 8;
  constexpr std::chrono::microseconds kSlow(500);  // to take one; 4 KiB at a time it takes 800
  uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  for (uintptr_t page = first; page < last; page += kTried * kPage) {
    auto ask = [](uintptr_t from, uintptr_t to) {
      return to > from && madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE) == 0;
    };
    if (!ask(page, page + kPage)) return;
    auto begin = std::chrono::steady_clock::now();
    *reinterpret_cast<volatile char*>(page) = 0;
    if (std::chrono::steady_clock::now() - begin > kSlow) return;
    ask(page + kPage, std::min(last, page + kTried * kPage));
  }
#endif
}

// Reads arguments, then results, in order.
class Reader {
 public:
  Reader(ffi::RemainingArgs args, ffi::RemainingRets rets, size_t members)
      : args_(args), rets_(rets), members_(members) {}

  Buffer argument(size_t rank) { return buffer(args_.get<ffi::AnyBuffer>(arg_++).value(), rank, members_); }
  Buffer result(size_t rank) {
    auto any = rets_.get<ffi::AnyBuffer>(ret_++).value();
    in_large_pages(static_cast<char*>(any->untyped_data()), any->size_bytes());
    return buffer(*any, rank, members_);
  }
  std::vector<Buffer> arguments(int count, size_t rank) {
    std::vector<Buffer> out;
    for (int i = 0; i < count; ++i) out.push_back(argument(rank));
    return out;
  }
  std::vector<Buffer> results(int count, size_t rank) {
    std::vector<Buffer> out;
    for (int i = 0; i < count; ++i) out.push_back(result(rank));
    return out;
  }
  void end() {
    if (arg_ != args_.size() || ret_ != rets_.size()) throw Bad("too many or too few buffers");
  }

 private:
  ffi::RemainingArgs args_;
  ffi::RemainingRets rets_;
  size_t members_, arg_ = 0, ret_ = 0;
};

template <class T>
ffi::Error forward_call(ffi::ThreadPool& pool, const Isa& isa, const Attributes& attributes,
                        Reader read) {
  Call<T> c(attributes, false);
  c.xs = read.argument(3), c.w = read.argument(3), c.b = read.argument(2);
  c.r = read.argument(4);
  c.units = read.arguments(c.unit, 1), c.state = read.arguments(c.states, 2);
  if (c.has_starts) c.initial = read.arguments(c.states, 2);
  if (c.has_mask) c.mask = read.argument(2);
  if (c.has_starts) c.starts = read.argument(2);
  c.final = read.results(c.states, 2), c.ys = read.result(3);
  if (c.save) c.packed = read.results(c.parts, 3);
  if (c.save) c.before = read.results(c.states - c.kept, 3);
  read.end();
  c.measure(c.ys);
  return c.run(pool, isa);
}

template <class T>
ffi::Error backward_call(ffi::ThreadPool& pool, const Isa& isa, const Attributes& attributes,
                         Reader read) {
  Call<T> c(attributes, true);
  c.xs = read.argument(3), c.w = read.argument(3), c.b = read.argument(2);
  c.r = read.argument(4), c.units = read.arguments(c.unit, 1);
  if (c.kept) c.state = read.arguments(1, 2), c.ys = read.argument(3);
  c.packed = read.arguments(c.parts, 3), c.before = read.arguments(c.states - c.kept, 3);
  if (c.has_d_final) c.d_final = read.arguments(c.states, 2);
  if (c.has_d_ys) c.d_ys = read.argument(3);
  if (c.has_mask) c.mask = read.argument(2);
  if (c.has_starts) c.starts = read.argument(2);
  c.d_state = read.results(c.states, 2);
  if (c.has_starts) c.d_initial = read.results(c.states, 2);
  c.d_unit = read.results(c.unit, 2);
  if (c.want_w) c.d_w = read.result(3), c.d_b = read.result(2);
  if (c.want_r) c.d_r = read.result(4);
  if (c.want_x) c.d_xs = read.result(3);
  read.end();
  Buffer like = c.d_state[0];  // [B, H], with all members
  like.shape.insert(like.shape.begin() + c.batch_first, c.xs.shape[c.batch_first]);
  c.measure(like);
  return c.run(pool, isa);
}

ffi::Error call(bool backward, ffi::ThreadPool pool, ffi::RemainingArgs args,
                ffi::RemainingRets rets, const Attributes& attributes) {
  try {
    const Isa* isa = find_isa(attributes.isa);
    if (!isa)
      return ffi::Error(ffi::ErrorCode::kInvalidArgument,
                        "jaxrnn: this machine has no instruction set " + std::string(attributes.isa));
    // The first result of either is a state, [B, H], in the type of the arithmetic.
    auto first = rets.get<ffi::AnyBuffer>(0).value();
    size_t members = first->dimensions().size() - 2;
    Reader read(args, rets, members);
    auto* f = backward ? &backward_call<float> : &forward_call<float>;
    auto* d = backward ? &backward_call<double> : &forward_call<double>;
    return (first->element_type() == ffi::F64 ? d : f)(pool, *isa, attributes, read);
  } catch (const Bad& bad) {
    return ffi::Error(ffi::ErrorCode::kInvalidArgument, "jaxrnn: " + bad);
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jaxrnn: out of memory");
  }
}

template <bool kBackward>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  ffi::Span<const int32_t> sizes, ffi::Span<const int32_t> program,
                  ffi::Span<const double> constants, ffi::Span<const int32_t> outputs,
                  ffi::Span<const int32_t> input, ffi::Span<const int32_t> recurrent,
                  ffi::Span<const int32_t> part, ffi::Span<const int32_t> place,
                  std::string_view isa) {
  Attributes attributes{sizes, program, outputs, input, recurrent, part, place, constants, isa};
  return call(kBackward, pool, args, rets, attributes);
}

// The program alone, for tests: arrays [K] in the type of the first.
template <class T>
void evaluate(const Isa& isa, const Program& program, ffi::RemainingArgs args,
              ffi::RemainingRets rets) {
  std::vector<const T*> inputs;
  std::vector<T*> outputs;
  for (size_t i = 0; i < args.size(); ++i)
    inputs.push_back(static_cast<T*>(args.get<ffi::AnyBuffer>(i).value().untyped_data()));
  for (size_t i = 0; i < rets.size(); ++i)
    outputs.push_back(static_cast<T*>((*rets.get<ffi::AnyBuffer>(i).value()).untyped_data()));
  std::vector<T> scratch((program.registers + program.inputs + 1) * kTile);
  int64_t count = (*rets.get<ffi::AnyBuffer>(0).value()).element_count();
  FlushSubnormals flush;
  kernel_of<T>(isa).evaluate(program, inputs.data(), outputs.data(), count, rets.size(),
                             scratch.data());
}

ffi::Error handle_evaluate(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t registers,
                           ffi::Span<const int32_t> instructions,
                           ffi::Span<const double> constants, ffi::Span<const int32_t> outputs,
                           std::string_view name) {
  const Isa* isa = find_isa(name);
  if (!isa) return ffi::Error(ffi::ErrorCode::kInvalidArgument, "jaxrnn: no such instruction set");
  Program program{reinterpret_cast<const Instruction*>(instructions.begin()),
                  static_cast<int32_t>(instructions.size() / 5),
                  static_cast<int32_t>(registers),
                  static_cast<int32_t>(args.size()),
                  static_cast<int32_t>(constants.size()),
                  constants.begin(),
                  outputs.begin()};
  bool wide = (*rets.get<ffi::AnyBuffer>(0).value()).element_type() == ffi::F64;
  (wide ? evaluate<double> : evaluate<float>)(*isa, program, args, rets);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxrnn

#pragma GCC visibility push(default)  // from here on, what Python looks up

#define JAXRNN_BINDING(name)                             \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                         \
      jaxrnn_##name, jaxrnn::handle<name>,               \
      ffi::Ffi::Bind()                                   \
          .Ctx<ffi::ThreadPool>()                        \
          .RemainingArgs()                               \
          .RemainingRets()                               \
          .Attr<ffi::Span<const int32_t>>("sizes")       \
          .Attr<ffi::Span<const int32_t>>("program")     \
          .Attr<ffi::Span<const double>>("constants")    \
          .Attr<ffi::Span<const int32_t>>("outputs")     \
          .Attr<ffi::Span<const int32_t>>("input")       \
          .Attr<ffi::Span<const int32_t>>("recurrent")   \
          .Attr<ffi::Span<const int32_t>>("part")        \
          .Attr<ffi::Span<const int32_t>>("place")       \
          .Attr<std::string_view>("isa"))

constexpr bool forward = false, backward = true;
JAXRNN_BINDING(forward);
JAXRNN_BINDING(backward);

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

// The instruction sets of this machine, the best first: "avx512,avx2,baseline".
extern "C" const char* jaxrnn_instruction_sets() {
  static const std::string names = [] {
    std::string out;
    for (const auto* isa : jaxrnn::available()) out += (out.empty() ? "" : ",") + std::string(isa->name);
    return out;
  }();
  return names.c_str();
}
