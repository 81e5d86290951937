// Attention with an online softmax, a block of queries and a block of keys at a time.
//
// Scores are kept with queries side by side, [keys][queries]. So the softmax over keys is taken
// down the lanes of vectors, and keys and values, which many queries meet, are the left sides of
// products and need no packing.

#include "attention_task.h"

namespace {

using namespace jaxrnn;

template <class T>
struct Power;

// 2^x, for x <= 0 or little above; 0 below 2^-126, and of minus infinity. NaN gives NaN.
template <>
struct Power<float> {
  typedef Vector<float>::type V;
  typedef Vector<float>::bits I;
  static V of(V x) {
    V shifted = x + 12582912.f;  // the integer, in the low bits
    V r = x - (shifted - 12582912.f);
    // A polynomial of least relative error, 2e-9, on [-1/2, 1/2].
    V p = 1.5353361e-4f * r + 1.3398875e-3f;
    p = p * r + 9.6184369e-3f;
    p = p * r + 5.5503324e-2f;
    p = p * r + 2.4022648e-1f;
    p = p * r + 6.9314718e-1f;
    p = p * r + 1.f;
    return x < -126.f ? V{} : (V)((I)p + ((I)shifted << 23));
  }
};

template <>
struct Power<double> {
  typedef Vector<double>::type V;
  static V of(V x) {
    for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp2(x[i]);
    return x;
  }
};

constexpr double kLog2E = 1.4426950408889634;

// Position and episode of the steps of a block, as numbers as wide as T; and their bounds.
template <class T>
struct Places {
  typedef typename Vector<T>::bits I;
  typedef decltype(I{}[0] + 0) Int;
  alignas(64) Int position[kBlock];
  alignas(64) Int episode[kBlock];
  int64_t first_position, last_position, first_episode, last_episode;
  bool all;  // no step is one that nobody sees

  // Those of `count` steps from `first` on. Up to `wide` more, which see nothing.
  void read(const int32_t* positions, const int32_t* episodes, int64_t first, int64_t count,
            int64_t wide, bool keys) {
    first_position = first_episode = INT64_MAX, last_position = last_episode = INT64_MIN;
    all = true;
    for (int64_t i = 0; i < count; ++i) {
      int64_t p = positions ? positions[first + i] : first + i;
      int64_t e = episodes ? episodes[first + i] : 0;
      position[i] = p;
      if (keys && e < 0) {
        episode[i] = INT32_MIN;
        all = false;
        continue;
      }
      episode[i] = e;
      first_position = p < first_position ? p : first_position;
      last_position = p > last_position ? p : last_position;
      first_episode = e < first_episode ? e : first_episode;
      last_episode = e > last_episode ? e : last_episode;
    }
    for (int64_t i = count; i < wide; ++i) position[i] = 0, episode[i] = INT32_MIN + 1;
  }
};

enum Seen { kNothing, kSome, kAll };

template <class T>
Seen seen(const Places<T>& q, const Places<T>& k, int64_t window) {
  if (k.first_position > q.last_position || q.first_position - k.last_position >= window ||
      k.first_episode > q.last_episode || k.last_episode < q.first_episode ||
      k.last_episode == INT64_MIN)
    return kNothing;
  bool one = k.first_episode == q.last_episode && k.last_episode == q.first_episode;
  bool back = k.last_position <= q.first_position && q.last_position - k.first_position < window;
  return k.all && one && back ? kAll : kSome;
}

// `otherwise` in place of each of a block's numbers [keys][kBlock] whose key its query does not see.
template <class T>
void hide(T* block, const Places<T>& q, const Places<T>& k, int64_t keys, int64_t wide,
          int64_t window, T otherwise) {
  typedef typename Vector<T>::type V;
  typedef typename Vector<T>::bits I;
  constexpr int L = kLanes<T>;
  const V other = broadcast(otherwise);
  const I most = I{} + static_cast<typename Places<T>::Int>(window < INT32_MAX ? window : INT32_MAX);
  for (int64_t v = 0; v < wide; v += L) {
    I position, episode;
    memcpy(&position, q.position + v, sizeof position);
    memcpy(&episode, q.episode + v, sizeof episode);
    for (int64_t s = 0; s < keys; ++s) {
      I back = position - k.position[s];
      I is = (back >= 0) & (back < most) & (episode == k.episode[s]);
      T* at = block + s * kBlock + v;
      store(at, is ? load(at) : other);
    }
  }
}

// Rows [count][D] of an array, `stride` apart, with zeros up to the stride.
template <class T>
void rows_from(T* to, const Array& from, int32_t storage, int64_t first, int64_t count,
               int64_t width, int64_t stride) {
  for (int64_t i = 0; i < count; ++i, to += stride) {
    read(to, from.data, storage, (first + i) * from.time, width);
    zero(to + width, stride - width);
  }
}

// A block of queries' [count][D], as the right side of products: [D][wide], in panels.
template <class T>
void turned(T* to, const T* rows, int64_t count, int64_t width, int64_t stride, int64_t wide) {
  pack(to, rows, width, int64_t{1}, count, stride, wide);
}

// scores[s][q] = sum_d left[s][d] right[d][q], for a block of keys.
template <class T>
void meet(T* scores, const T* left, const T* right, int64_t keys, int64_t width, int64_t wide) {
  Factor<T> f{right, kZeros<T>, 0, scores};
  product<T>(keys, wide, {width, 1, 0}, &f, 1, kBlock,
             [&](int64_t m, int) { return left + m * width; });
}

// out[d][q] += sum_s left[s][d] block[s][q].
template <class T>
void gather(T* out, const T* left, const T* block, int64_t keys, int64_t width, int64_t wide) {
  Factor<T> f{block, out, kBlock, out};
  product<T>(width, wide, {keys, width, kBlock}, &f, 1, kBlock,
             [&](int64_t m, int) { return left + m; });
}

// The sums and tops of a block of queries after one more block of keys; scores become weights.
template <class T>
void soften(T* scores, T* top, T* total, T* shrink, int64_t keys, int64_t wide, T scale) {
  typedef typename Vector<T>::type V;
  constexpr int L = kLanes<T>;
  const V none = broadcast(static_cast<T>(-INFINITY));
  for (int64_t v = 0; v < wide; v += L) {
    T* column = scores + v;
    V before = load(top + v), high[4] = {before, none, none, none};
    int64_t s = 0;
    for (; s + 4 <= keys; s += 4)
      for (int i = 0; i < 4; ++i) {
        V x = load(column + (s + i) * kBlock);
        high[i] = x > high[i] ? x : high[i];
      }
    for (; s < keys; ++s) {
      V x = load(column + s * kBlock);
      high[0] = x > high[0] ? x : high[0];
    }
    for (int i = 1; i < 4; ++i) high[0] = high[i] > high[0] ? high[i] : high[0];
    // A query that has seen nothing yet has no top, and minus infinity less itself is no number.
    V base = (high[0] == none ? V{} : high[0]) * scale;
    V less = Power<T>::of(before * scale - base), sum[2] = {load(total + v) * less, V{}};
    for (s = 0; s + 2 <= keys; s += 2)
      for (int i = 0; i < 2; ++i) {
        V x = Power<T>::of(load(column + (s + i) * kBlock) * scale - base);
        store(column + (s + i) * kBlock, x);
        sum[i] += x;
      }
    if (s < keys) {
      V x = Power<T>::of(load(column + s * kBlock) * scale - base);
      store(column + s * kBlock, x);
      sum[0] += x;
    }
    store(top + v, high[0]);
    store(total + v, sum[0] + sum[1]);
    store(shrink + v, less);
  }
}

template <class T>
void attention_forward(const Attention<T>& a, int64_t first, int64_t count, T* scratch) {
  typedef typename Vector<T>::type V;
  constexpr int L = kLanes<T>;
  const int64_t D = a.width, stride = row_of<T>(D);
  const T scale = static_cast<T>(kLog2E / ::sqrt(static_cast<double>(D)));
  auto take = [&](int64_t elements) { return scratch += elements, scratch - elements; };
  T *packed = take(D * kForwardChunk), *out = take(D * kForwardChunk);
  T *top = take(kForwardChunk), *total = take(kForwardChunk), *shrink = take(kBlock);
  T *rows = take(stride * kBlock), *k = take(stride * kBlock), *v = take(stride * kBlock);
  T *scores = take(kBlock * kBlock);
  Places<T> q_places[kForwardChunk / kBlock], k_places;
  const int64_t blocks = blocks_of(count);
  auto size_of_block = [&](int64_t b) { return b + 1 < blocks ? kBlock : count - b * kBlock; };
  auto up = [&](int64_t n) { return (n + L - 1) / L * L; };
  for (int64_t b = 0; b < blocks; ++b) {
    int64_t size = size_of_block(b), wide = up(size), from = first + b * kBlock;
    rows_from(rows, a.q, a.storage, from, size, D, stride);
    turned(packed + b * kBlock * D, rows, size, D, stride, wide);
    q_places[b].read(a.q_position, a.q_episode, from, size, wide, false);
  }
  zero(out, D * kForwardChunk);
  zero(total, kForwardChunk);
  for (int64_t i = 0; i < kForwardChunk; ++i) top[i] = static_cast<T>(-INFINITY);

  for (int64_t s = 0; s < a.keys; s += kBlock) {
    int64_t keys = a.keys - s < kBlock ? a.keys - s : kBlock;
    k_places.read(a.k_position, a.k_episode, s, keys, keys, true);
    bool here = false;
    for (int64_t b = 0; b < blocks; ++b) {
      Seen is = seen(q_places[b], k_places, a.window);
      if (is == kNothing) continue;
      if (!here) {
        rows_from(k, a.k, a.storage, s, keys, D, D);
        rows_from(v, a.v, a.storage, s, keys, D, D);
        here = true;
      }
      int64_t wide = up(size_of_block(b));
      T *out_b = out + b * kBlock * D, *top_b = top + b * kBlock, *total_b = total + b * kBlock;
      meet(scores, k, packed + b * kBlock * D, keys, D, wide);
      if (is == kSome)
        hide(scores, q_places[b], k_places, keys, wide, a.window, static_cast<T>(-INFINITY));
      soften(scores, top_b, total_b, shrink, keys, wide, scale);
      for (int64_t c = 0; c < wide; c += L) {
        V less = load(shrink + c);
        for (int64_t d = 0; d < D; ++d) {
          T* at = out_b + d * kBlock + c;
          store(at, load(at) * less);
        }
      }
      gather(out_b, v, scores, keys, D, wide);
    }
  }

  for (int64_t b = 0; b < blocks; ++b) {
    int64_t from = first + b * kBlock;
    for (int64_t i = 0; i < size_of_block(b); ++i) {
      T sum = total[b * kBlock + i], high = top[b * kBlock + i];
      if (sum == 0) sum = 1;  // a query that sees nothing is zero
      for (int64_t d = 0; d < D; ++d) rows[d] = out[(b * D + d) * kBlock + i] / sum;
      write(a.ys.data, rows, a.storage, (from + i) * a.ys.time, D);
      if (a.sums) {
        T base = high == static_cast<T>(-INFINITY) ? 0 : high * (scale / static_cast<T>(kLog2E));
        a.sums[(from + i) * a.sums_step] = base + static_cast<T>(::log(sum));
      }
    }
  }
}

// Where the sums of a task's gradients are.
template <class T>
struct Sums {
  T *d_q, *d_k, *d_v;  // [blocks][D][kBlock], and [S][stride] each
  int64_t stride;

  Sums(const Attention<T>& a, T* memory)
      : d_q(memory), d_k(d_q + blocks_of(a.queries) * kBlock * a.width),
        d_v(d_k + a.keys * row_of<T>(a.width)), stride(row_of<T>(a.width)) {}
};

template <class T>
void attention_pair(const Attention<T>& a, int64_t q_first, int64_t k_first, const Sums<T>& sums,
                    T* scratch) {
  typedef typename Vector<T>::type V;
  constexpr int L = kLanes<T>;
  const int64_t D = a.width, stride = sums.stride;
  const T root = static_cast<T>(1 / ::sqrt(static_cast<double>(D)));
  const T scale = static_cast<T>(kLog2E / ::sqrt(static_cast<double>(D)));
  auto take = [&](int64_t elements) { return scratch += elements, scratch - elements; };
  T *k = take(D * kBackwardChunk), *v = take(D * kBackwardChunk);
  T *q_packed = take(D * kBlock), *d_packed = take(D * kBlock);
  T *q = take(stride * kBlock), *d_ys = take(stride * kBlock), *ys = take(stride * kBlock);
  T *weights = take(kBlock * kBlock), *d_scores = take(kBlock * kBlock);
  T *base = take(kBlock), *along = take(kBlock);
  auto least = [](int64_t x, int64_t y) { return x < y ? x : y; };
  const int64_t keys = least(kBackwardChunk, a.keys - k_first);
  const int64_t q_end = least(a.queries, q_first + kBackwardChunk);
  Places<T> k_places[kBackwardChunk / kBlock], q_places;
  for (int64_t s = 0; s < keys; s += kBlock)
    k_places[s / kBlock].read(a.k_position, a.k_episode, k_first + s, least(kBlock, keys - s),
                              least(kBlock, keys - s), true);
  bool here = false;
  for (int64_t i = q_first; i < q_end; i += kBlock) {
    int64_t count = least(kBlock, q_end - i), wide = (count + L - 1) / L * L;
    q_places.read(a.q_position, a.q_episode, i, count, wide, false);
    bool loaded = false;
    for (int64_t s = 0; s < keys; s += kBlock) {
      Seen is = seen(q_places, k_places[s / kBlock], a.window);
      if (is == kNothing) continue;
      if (!here) {
        rows_from(k, a.k, a.storage, k_first, keys, D, D);
        rows_from(v, a.v, a.storage, k_first, keys, D, D);
        here = true;
      }
      if (!loaded) {
        rows_from(q, a.q, a.storage, i, count, D, stride);
        rows_from(d_ys, a.d_ys, a.storage, i, count, D, stride);
        rows_from(ys, a.ys, a.storage, i, count, D, stride);
        turned(q_packed, q, count, D, stride, wide);
        turned(d_packed, d_ys, count, D, stride, wide);
        for (int64_t m = 0; m < wide; ++m) base[m] = along[m] = 0;
        for (int64_t m = 0; m < count; ++m) {
          base[m] = a.sums[(i + m) * a.sums_step] * static_cast<T>(kLog2E);
          V sum = V{};
          for (int64_t d = 0; d < stride; d += L)
            sum += load(ys + m * stride + d) * load(d_ys + m * stride + d);
          for (int l = 0; l < L; ++l) along[m] += sum[l];
        }
        loaded = true;
      }
      int64_t some = least(kBlock, keys - s);
      const T *k_s = k + s * D, *v_s = v + s * D;
      meet(weights, k_s, q_packed, some, D, wide);
      meet(d_scores, v_s, d_packed, some, D, wide);
      for (int64_t c = 0; c < wide; c += L) {
        V high = load(base + c), less = load(along + c);
        for (int64_t r = 0; r < some; ++r) {
          T *w = weights + r * kBlock + c, *d = d_scores + r * kBlock + c;
          V p = Power<T>::of(load(w) * scale - high);
          store(w, p);
          store(d, p * ((load(d) - less) * root));
        }
      }
      if (is == kSome) {
        hide(weights, q_places, k_places[s / kBlock], some, wide, a.window, T(0));
        hide(d_scores, q_places, k_places[s / kBlock], some, wide, a.window, T(0));
      }
      auto add = [&](T* to, const T* left, const T* right) {
        Factor<T> f{right, to, stride, to};
        product<T>(some, (D + L - 1) / L * L, {count, 1, stride}, &f, 1, stride,
                   [&](int64_t m, int) { return left + m * kBlock; });
      };
      add(sums.d_v + (k_first + s) * stride, weights, d_ys);
      add(sums.d_k + (k_first + s) * stride, d_scores, q);
      gather(sums.d_q + i * D, k_s, d_scores, some, D, wide);
    }
  }
}

template <class T>
void attention_backward(const Attention<T>& a, int32_t block, int64_t phase, T* memory,
                        T* scratch) {
  const Sums<T> sums(a, memory);
  const int64_t D = a.width, chunks = pairs_of(a.queries, a.keys);
  auto end = [](int64_t first, int64_t size) {
    return size - first < kBackwardChunk ? size : first + kBackwardChunk;
  };
  const int64_t own = block * kBackwardChunk;
  if (phase == 0) {
    if (own < a.queries)
      zero(sums.d_q + own * D, (blocks_of(end(own, a.queries)) * kBlock - own) * D);
    if (own < a.keys) {
      zero(sums.d_k + own * sums.stride, (end(own, a.keys) - own) * sums.stride);
      zero(sums.d_v + own * sums.stride, (end(own, a.keys) - own) * sums.stride);
    }
  }
  if (phase < chunks) {
    int64_t q_first = (block + phase) % chunks * kBackwardChunk;
    if (own < a.keys && q_first < a.queries) attention_pair(a, q_first, own, sums, scratch);
    return;
  }
  for (int64_t i = own; i < end(own, a.queries) && own < a.queries; ++i) {
    const T* from = sums.d_q + i / kBlock * kBlock * D + i % kBlock;
    for (int64_t d = 0; d < D; ++d) scratch[d] = from[d * kBlock];
    write(a.d_q.data, scratch, a.storage, i * a.d_q.time, D);
  }
  for (int64_t s = own; s < end(own, a.keys) && own < a.keys; ++s) {
    write(a.d_k.data, sums.d_k + s * sums.stride, a.storage, s * a.d_k.time, D);
    write(a.d_v.data, sums.d_v + s * sums.stride, a.storage, s * a.d_v.time, D);
  }
}

}  // namespace
