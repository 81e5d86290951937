// What one task of the kernel is: plain data, shared by every instruction set.
//
// A task is one dense recurrence of D units over T steps of B rows: one head of one member of an
// ensemble, for some rows of the batch. Tasks are independent of each other. The units of a task
// are cut into blocks of at most 64; a phase (packing, then each step) runs every block once.

#pragma once

#include <stdint.h>

namespace jaxrnn {

constexpr int kWidth = 64;       // the most units of a block
constexpr int kTile = 6 * kWidth;  // the most elements of a tile: some rows of a block
constexpr int kMaxRows = 12;     // the most rows of a tile

enum Storage : int32_t { kF32, kF64, kBF16, kF16 };

template <class T>
constexpr int32_t kSame = sizeof(T) == 4 ? kF32 : kF64;  // as the arithmetic's type

// An array in memory; strides in elements. The units of a row lie side by side.
struct Array {
  char* data;  // null where it is absent
  int64_t time, row;
};

struct Instruction {
  int32_t operation, to, a, b, c;  // registers
};

struct Program {
  const Instruction* instructions;
  int32_t length, registers, inputs, constants;  // registers: inputs, then constants, then others
  const double* values;                          // of the constants
  const int32_t* outputs;                        // which register each output is in
};

// Where gates are in a program's registers, and in the arrays of packed gates.
struct Gates {
  int32_t count;  // G
  int32_t slots;  // K: a gate whose parts are kept apart has two
  const int32_t* input;      // [G] the slot of the input's part
  const int32_t* recurrent;  // [G] the slot of the state's part
  const int32_t* part;       // [K] the array of a slot
  const int32_t* place;      // [K] its place in that array
  // [K] in which column of a row of all K a slot's gradient is: first those of the input alone, then
  // those of both, then those of the state alone. So the input's G are the first ones, and the
  // state's the last.
  const int32_t* column;
};

constexpr int kMaxStates = 8, kMaxUnit = 16, kMaxParts = 3, kMaxGates = 16, kMaxRegisters = 4096;

// What one block has to itself.
template <class T>
struct Block {
  int32_t first, width, padded;  // its units are first .. first + width - 1; padded to vectors
  T* w;        // [G][I][padded], in panels; backward: only to make gates again
  T* r;        // [G][D][padded], in panels; the same
  T* bias;     // [G][padded]; the same
  T* unit;     // [U][tile]: each weight, repeated for the rows of a tile
  T* state;    // the states; backward: their gradients, [S][B][padded]
  T* gates;    // [K][chunk * B][padded]: what enters the gates; backward: only to make them again
  // Backward only.
  T* back;     // [G * D][padded]: what the gates give back to h, in panels, in order of column
  T* initial;  // [S][B][padded], the gradient of the initial state
  T *d_unit, *d_w, *d_b, *d_r;  // [U][B][padded], [G][I][padded], [G][padded], [G][D][padded]
  int32_t x_first, x_width, x_padded;  // its share of the features of xs
  T* x_back;   // [G * D][x_padded]: what the gates give back to xs, the same
  T* d_x;      // [chunk * B][x_padded]
};

template <class T>
struct Task {
  int64_t T_, B, I, D, H;  // H: the units of a row in memory, of which D are this task's
  int32_t states, unit;    // S, U
  int32_t storage;         // of xs and ys and their gradients
  int32_t reverse, save;
  int32_t kept;            // the first state that is kept among the residuals
  int64_t chunk;           // how many steps the input's part of the gates is made for at once
  Gates gates;
  Program program;

  const T *w, *b, *r;  // [I, G, H], [G, H], [D, G, D]; w and b from this task's first unit on
  const T* unit_weights[kMaxUnit];
  Array xs, ys, mask, starts;
  Array state[kMaxStates], initial[kMaxStates];  // [B, H]
  Array final[kMaxStates];                       // the same; backward: its gradient
  Array packed[kMaxParts];  // what enters the gates; backward: in, forward: out
  Array before[kMaxStates];  // the states before each step; backward: in, forward: out
  Array after[kMaxStates];   // those after it, if wanted; backward: their gradients
  Array d_ys, d_state[kMaxStates], d_initial[kMaxStates], d_unit[kMaxUnit];

  int32_t want_x, want_w, want_r, again;  // backward: which gradients; whether gates are made again
  Array d_xs;
  int32_t d_xs_storage, add_x;  // add_x: another head's part is there already
  T *d_w, *d_b, *d_r;  // as w, b and r

  // All with rows as `row_of` says.
  T* shared[2];  // forward: h, [B][D]
  // Backward, of one chunk and the one before, [chunk * B] rows in the order of processing:
  T* d_gates[2];  // the gradients of what enters the gates, [K * D], in order of column
  T* inputs[2];   // xs, [I]
  T* hidden[2];   // h before each step, [D]
  Block<T>* block;
};

// From row to row of the arrays below: an odd number of cache lines, so that the rows of a large
// power of two of elements do not all fall into the same few places of a cache.
template <class T>
inline int64_t row_of(int64_t elements) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return ((elements + kLine - 1) / kLine | 1) * kLine;
}

// The functions of one instruction set. A phase runs every block once: `scratch` has
// `scratch_size` elements. `evaluate` runs the program alone, for tests.
template <class T>
struct Kernel {
  int32_t lanes;
  void (*forward)(const Task<T>&, int32_t block, int64_t phase, T* scratch);
  void (*backward)(const Task<T>&, int32_t block, int64_t phase, T* scratch);
  void (*evaluate)(const Program&, const T* const* inputs, T* const* outputs, int64_t count,
                   int32_t results, T* scratch);
};

// What one worker needs: the program's registers, constants first, with tiles for its inputs last;
// then rows of xs.
inline int64_t scratch_size(const Program& program, int64_t features) {
  return static_cast<int64_t>(program.registers) * kTile + kMaxRows * features;
}

// Fills in the constants, which come first in a worker's scratch memory and stay there.
template <class T>
inline void fill_constants(const Program& program, T* scratch) {
  for (int i = 0; i < program.constants; ++i)
    for (int j = 0; j < kTile; ++j) *scratch++ = static_cast<T>(program.values[i]);
}

}  // namespace jaxrnn
