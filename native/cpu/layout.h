// How tasks are cut into blocks and laid out in memory, and how their sums are put together.

#pragma once

#include "call.h"

namespace jaxrnn {

inline int64_t up(int64_t bytes) { return (bytes + 127) / 128 * 128; }

// Blocks of whole vectors: of the units, and of the features of xs for the gradient.
template <class T>
struct Layout {
  Layout(const Call<T>& call, int lanes, int workers) : call(call), lanes(lanes) {
    int64_t vectors = (call.D + lanes - 1) / lanes, widest = kWidth / lanes;
    // As many for each worker: one with a block less would wait for the others at every step.
    int64_t least = (vectors + widest - 1) / widest;
    blocks = std::min<int64_t>(vectors, (least + workers - 1) / workers * workers);
  }

  const Call<T>& call;
  int lanes, blocks;

  // Places a task's memory and its blocks'; with no memory, only counts the bytes.
  int64_t place(Task<T>& task, Block<T>* block, char* memory) const {
    int64_t used = 0;
    auto take = [&](T*& to, int64_t elements) {
      if (memory) to = reinterpret_cast<T*>(memory + used);
      used += up(elements * sizeof(T));
    };
    int64_t G = task.gates.count, K = task.gates.slots, I = task.I, D = task.D, B = task.B;
    int64_t rows = task.chunk * B;
    bool backward = call.backward;
    task.block = block;
    for (int i = 0; !backward && i < 2; ++i) take(task.shared[i], B * row_of<T>(D));
    for (int i = 0; backward && i < 2; ++i) {
      take(task.d_gates[i], rows * row_of<T>(K * D));
      if (task.want_w) take(task.inputs[i], rows * row_of<T>(I));
      if (task.want_r) take(task.hidden[i], rows * row_of<T>(D));
    }
    for (int i = 0; i < blocks; ++i) {
      Block<T>& it = block[i];
      it = Block<T>{};
      cut(D, i, &it.first, &it.width, &it.padded);
      cut(I, i, &it.x_first, &it.x_width, &it.x_padded);
      int64_t p = it.padded;
      if (!backward || task.again) {
        take(it.w, G * I * p);
        take(it.r, G * D * p);
        take(it.bias, G * p);
        take(it.gates, K * rows * p);
      }
      take(it.unit, task.unit * kTile);
      take(it.state, task.states * B * p);
      if (!backward) continue;
      take(it.back, G * D * p);
      take(it.initial, task.states * B * p);
      take(it.d_unit, task.unit * B * p);
      if (task.want_w) {
        take(it.d_w, G * I * p);
        take(it.d_b, G * p);
      }
      if (task.want_r) take(it.d_r, G * D * p);
      if (task.want_x) {
        take(it.x_back, G * D * it.x_padded);
        take(it.d_x, rows * it.x_padded);
      }
    }
    return used;
  }

 private:
  // The i-th share of `size`.
  void cut(int64_t size, int i, int32_t* first, int32_t* width, int32_t* padded) const {
    int64_t vectors = (size + lanes - 1) / lanes;
    int64_t begin = vectors * i / blocks * lanes, end = vectors * (i + 1) / blocks * lanes;
    *first = begin, *width = std::min(end, size) - begin, *padded = end - begin;
  }
};

// Slices of a batch add to the gradients of the same weights: each but the first, which has the
// results, gets memory of its own, added up in order at the end.
template <class T>
struct Partial {
  Partial(const Call<T>& call, int64_t slices) : slices(slices) {
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

}  // namespace jaxrnn
