// A call of the kernel: what XLA handed over, checked, as tasks.

#pragma once

#include <algorithm>
#include <string_view>

#include "buffers.h"
#include "operations.h"

namespace jaxrnn {

// A call's attribute of this name; an array belongs to XLA's program.
template <class T>
T named(const xla::ffi::Dictionary& attributes, const char* name) {
  auto value = attributes.get<T>(name);
  require(value.has_value(), name, ": no such attribute of this type");
  return *value;
}

// A program as attributes say it.
struct ProgramText {
  template <class T>
  using Span = xla::ffi::Span<const T>;
  Span<int32_t> program, outputs;
  Span<double> constants;
};

// A program with this many inputs and results, whose registers are all there.
inline Program checked_program(const ProgramText& a, int32_t registers, int64_t inputs,
                               int64_t results) {
#define OP(name, result) +1
  constexpr int32_t kOperations = JAXRNN_OPERATIONS(OP);
#undef OP
  auto within = [](int32_t i, int32_t size) { return 0 <= i && i < size; };
  int64_t given = inputs + static_cast<int64_t>(a.constants.size());
  require(given <= registers && registers <= kMaxRegisters, "program: registers");
  require(a.program.size() % 5 == 0, "program: a part of an instruction");
  auto* instructions = reinterpret_cast<const Instruction*>(a.program.begin());
  int32_t length = a.program.size() / 5;
  for (const Instruction* i = instructions; i < instructions + length; ++i) {
    require(within(i->operation, kOperations), "program: an unknown operation");
    require(i->to >= given && i->to < registers, "program: the register of a result");
    for (int32_t from : {i->a, i->b, i->c})
      require(within(from, registers), "program: the register of an argument");
  }
  require(static_cast<int64_t>(a.outputs.size()) == results, "program: the number of results");
  for (int32_t output : a.outputs) require(within(output, registers), "program: a result");
  return {instructions, length, registers, static_cast<int32_t>(inputs),
          static_cast<int32_t>(a.constants.size()), a.constants.begin(), a.outputs.begin()};
}

template <class T>
struct Call {
  Call(const xla::ffi::Dictionary& attributes, Reader read, bool backward) : backward(backward) {
    take(attributes);
    members = read.members();
    constexpr int32_t kT = kSame<T>;
    xs = read.argument("xs", {kAnySize, kAnySize, kAnySize}, kAnyFloat);
    require(kT == kF64 || xs.storage != kF64, "xs: float64 for a float32 computation");
    T_ = xs.shape[batch_first], B = xs.shape[!batch_first], I = xs.shape[2];
    require(T_ > 0, "xs: no steps");
    int64_t G = gates.count;
    w = read.argument("w", {I, G, kAnySize}, kT), H = w.shape[2];
    b = read.argument("b", {G, H}, kT);
    r = read.argument("r", {kAnySize, kAnySize, G, kAnySize}, kT);
    N = r.shape[0], D = r.shape[1];
    require(N * D == H && r.shape[3] == D, "r: an unexpected shape");
    units = read.arguments(unit, "unit", {H}, kT);

    auto sequence = [&](int64_t width) {
      return batch_first ? Reader::Shape{B, T_, width} : Reader::Shape{T_, B, width};
    };
    const Reader::Shape flags{T_, B}, state_of_rows{B, H}, step{T_, B, H};
    if (!backward) {
      state = read.arguments(states, "state", state_of_rows, kT);
      if (has_starts) initial = read.arguments(states, "initial", state_of_rows, kT);
    } else {
      if (kept) {  // h before each step is read from ys
        require(xs.storage == kT, "ys: an unexpected type");
        state = read.arguments(1, "state", state_of_rows, kT);
        ys = read.argument("ys", sequence(H), kT);
      }
      for (int i = 0; i < parts; ++i)
        packed.push_back(read.argument("gates", {T_, B, gates_of_part(i) * H}, kT));
      before = read.arguments(states - kept, "states before", step, kT);
      if (has_d_final) d_final = read.arguments(states, "d_final", state_of_rows, kT);
      if (has_d_ys) d_ys = read.argument("d_ys", sequence(H), xs.storage);
      for (int s = 0; s < states; ++s)
        if (wants_after(s)) after[s] = read.argument("d_states after", step, kT);
    }
    if (has_mask) mask = read.argument("mask", flags, kFlag);
    if (has_starts) starts = read.argument("starts", flags, kFlag);
    if (!backward) {
      final = read.results(states, "final", state_of_rows, kT);
      if (want_y) ys = read.result("ys", sequence(H), xs.storage);
      for (int s = 0; s < states; ++s)
        if (wants_after(s)) after[s] = read.result("states after", step, kT);
      for (int i = 0; save && i < parts; ++i)
        packed.push_back(read.result("gates", {T_, B, gates_of_part(i) * H}, kT));
      if (save) before = read.results(states - kept, "states before", step, kT);
    } else {
      d_state = read.results(states, "d_state", state_of_rows, kT);
      if (has_starts) d_initial = read.results(states, "d_initial", state_of_rows, kT);
      d_unit = read.results(unit, "d_unit", state_of_rows, kT);
      if (want_w) d_w = read.result("d_w", w.shape, kT), d_b = read.result("d_b", b.shape, kT);
      if (want_r) d_r = read.result("d_r", r.shape, kT);
      // Several heads add to it, one after the other.
      if (want_x) d_xs = read.result("d_xs", sequence(I), N == 1 ? kAnyFloat : kT);
      require(!want_x || kT == kF64 || d_xs.storage != kF64, "d_xs: an unexpected type");
    }
    read.end();
  }

  bool backward;
  int32_t states, unit, parts;
  int32_t has_mask, has_starts, has_d_ys, has_d_final, reverse, save, kept, batch_first, again,
      want_x, want_w, want_r, want_y;
  int32_t want_after;  // a bit for each state
  Gates gates;
  std::vector<int32_t> columns;
  Program program;
  int64_t T_, B, I, H, N, D;
  std::vector<int64_t> members;
  Buffer xs, w, b, r, mask, starts, ys, d_ys;
  std::vector<Buffer> units, state, initial, packed, before, d_final;
  std::vector<Buffer> final, d_state, d_initial, d_unit;
  Buffer d_w, d_b, d_r, d_xs, after[kMaxStates];

  int64_t member_count() const {
    int64_t count = 1;
    for (int64_t n : members) count *= n;
    return count;
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
    // the sums of the weights' gradients, if they do not, should not be read and written too often.
    int64_t rows_at_once = !backward ? 96 : G * (I + D) * D <= (1 << 20) ? 256 : 512;
    t.chunk = std::clamp<int64_t>(rows_at_once / count, 1, T_);
    t.gates = gates, t.program = program;
    auto weight = [&](const Buffer& from, int64_t offset) {
      return from.data ? reinterpret_cast<T*>(from.member(member, members)) + offset : nullptr;
    };
    int64_t block = head * D * G * D;
    t.w = weight(w, column), t.b = weight(b, column), t.r = weight(r, block);
    t.d_w = weight(d_w, column), t.d_b = weight(d_b, column), t.d_r = weight(d_r, block);
    for (int u = 0; u < unit; ++u) t.unit_weights[u] = weight(units[u], column);
    t.xs = sequence(xs, member, first, 0, I, batch_first);
    t.ys = sequence(ys, member, first, column, H, batch_first);
    t.d_ys = sequence(d_ys, member, first, column, H, batch_first);
    t.d_xs = sequence(d_xs, member, first, 0, I, batch_first);
    t.d_xs_storage = d_xs.storage, t.add_x = head > 0;
    t.mask = sequence(mask, member, first, 0, 1, false);
    t.starts = sequence(starts, member, first, 0, 1, false);
    auto all = [&](Array* to, const std::vector<Buffer>& from) {
      for (size_t s = 0; s < from.size(); ++s) to[s] = rows(from[s], member, first, column);
    };
    all(t.state, state), all(t.initial, initial), all(t.final, backward ? d_final : final);
    all(t.d_state, d_state), all(t.d_initial, d_initial), all(t.d_unit, d_unit);
    for (int s = 0; s < states; ++s)
      t.after[s] = sequence(after[s], member, first, column, H, false);
    for (size_t i = 0; i < before.size(); ++i)
      t.before[kept + i] = sequence(before[i], member, first, column, H, false);
    for (size_t i = 0; i < packed.size(); ++i)
      t.packed[i] = sequence(packed[i], member, first, column, packed[i].shape[2], false);
    return t;
  }

 private:
  // The names are those of `_Plan.call` in recurrence/cpu.py.
  void take(const xla::ffi::Dictionary& attributes) {
    auto within = [](int64_t i, int64_t least, int64_t most) { return least <= i && i <= most; };
    auto number = [&](const char* name) { return named<int32_t>(attributes, name); };
    auto flag = [&](const char* name) {
      int32_t value = number(name);
      require(within(value, 0, 1), name, ": neither 0 nor 1");
      return value;
    };
    auto numbers = [&](const char* name) {
      return named<ProgramText::Span<int32_t>>(attributes, name);
    };
    states = number("states"), unit = number("unit"), parts = number("parts");
    has_mask = flag("has_mask"), has_starts = flag("has_starts");
    has_d_ys = flag("has_d_ys"), has_d_final = flag("has_d_final");
    reverse = flag("reverse"), save = flag("save"), kept = flag("kept");
    batch_first = flag("batch_first"), again = flag("again");
    want_x = flag("want_x"), want_w = flag("want_w"), want_r = flag("want_r");
    want_y = flag("want_y"), want_after = number("want_after");
    auto input = numbers("input"), recurrent = numbers("recurrent");
    auto part = numbers("part"), place = numbers("place");
    int64_t G = input.size(), K = part.size();
    require(within(states, 1, kMaxStates) && within(unit, 0, kMaxUnit) &&
                within(G, 1, kMaxGates) && within(parts, 0, kMaxParts),
            "more states, gates or weights than the kernel was made for");
    require(within(want_after, 0, (1 << states) - 1), "want_after: a state that there is not");
    require(within(K, G, 2 * G) && static_cast<int64_t>(recurrent.size()) == G &&
                static_cast<int64_t>(place.size()) == K,
            "gates: how many there are");
    columns.assign(K, -1);
    gates = {static_cast<int32_t>(G), static_cast<int32_t>(K), input.begin(), recurrent.begin(),
             part.begin(), place.begin(), columns.data()};
    for (int g = 0; g < G; ++g)
      require(within(gates.input[g], 0, K - 1) && within(gates.recurrent[g], 0, K - 1),
              "gates: where they are");
    int32_t next = 0;
    auto place_all = [&](bool shared, const int32_t* slot) {
      for (int g = 0; g < G; ++g)
        if (shared == (gates.input[g] == gates.recurrent[g])) columns[slot[g]] = next++;
    };
    place_all(false, gates.input), place_all(true, gates.input);
    place_all(false, gates.recurrent);
    require(next == K && std::count(columns.begin(), columns.end(), -1) == 0,
            "gates: two in one slot");
    // Backward either makes them again or is given all.
    int most = backward && !again ? parts : kMaxParts;
    for (int k = 0; k < K; ++k)
      require(within(gates.part[k], 0, most - 1) &&
                  within(gates.place[k], 0, gates_of_part(gates.part[k]) - 1),
              "gates: where they are kept");
    int64_t taken = states + K + unit, inputs = number("inputs");
    require(inputs == taken + (backward ? states : 0), "program: the number of inputs");
    ProgramText text{numbers("program"), numbers("outputs"),
                     named<ProgramText::Span<double>>(attributes, "constants")};
    program = checked_program(text, number("registers"), inputs, backward ? taken : states);
  }

  bool wants_after(int state) const { return want_after >> state & 1; }

  int64_t gates_of_part(int part) const {
    return std::count(gates.part, gates.part + gates.slots, part);
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
};

}  // namespace jaxrnn
