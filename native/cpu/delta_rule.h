// A memory with the delta rule and a decay, and its gradient, step after step:
//
//   r_t = S_{t-1}' b_t      S_t = w_t S_{t-1} + a_t r_t' + k_t v_t'      y_t = S_t' q_t
//
//   u_t = G_t' a_t      G_{t-1} = w_t G_t + b_t u_t' + q_{t-1} d_y_{t-1}'      d_v_t = G_t' k_t
//
// with G_t the gradient of S_t. So one function runs both, forward in time and back: a matrix is
// scaled, two outer products are added, of which one has what was read of the matrix before, and it
// is read twice. Its columns do not see each other: a block of them stays in the fastest cache for
// a whole chunk of steps.
//
//   d_q_t = S_t d_y_t     d_b_t = S_{t-1} u_t
//   d_k_t = G_t v_t       d_a_t = G_t r_t       d_w_t = sum over values of S_{t-1} G_t
//
// are sums over what lies in lanes above. By then r and u are known, so transposed copies of S and
// G, whose lanes are keys, are run again, forward and back. In these too columns are apart.
//
// Where q reads the memory before it is written, S_{t-1} is in place of S_t in y and d_q, and q_t
// and d_y_t are those of t in G_{t-1}.

#include "delta_rule_task.h"

namespace {

using namespace jaxrnn;

// One scaling of a matrix [rows][columns], two products, and two readings. Of rows: factor, left1,
// left2, look, query. Of columns: right1, right2, found, out.
template <class T>
struct MatrixStep {
  const T *factor, *left1, *right1, *left2, *right2, *look, *query;
  T *found, *out;
};

// What is added: left2 right2', left2 (right2 - right1)', left2 right2' - left1 right1', or both.
enum Added { kOne, kDifference, kLess, kBoth };

template <int n>
struct Count {
  static constexpr int value = n;
};

// `run(column, Count)` for the blocks of columns, each of so many vectors. A block of a matrix is
// contiguous: the first number of column c is the matrix' number c * rows.
template <class T, class Run>
inline void blocks_of(int64_t columns, Run run) {
  constexpr int L = kLanes<T>, kVectors = 2;
  int64_t column = 0;
  for (; column + kVectors * L <= columns; column += kVectors * L) run(column, Count<kVectors>());
  for (; column < columns; column += L) run(column, Count<1>());
}

// With kDecay there are factors, with kFound look and found, with kOut query and out.
template <class T, bool kDecay, Added kAdded, bool kFound, bool kOut, int kVectors>
inline void matrix_step(const MatrixStep<T>& w, T* block, int64_t rows, int64_t column) {
  typedef typename Vector<T>::type V;
  constexpr int L = kLanes<T>;
  constexpr bool kTwo = kAdded == kLess || kAdded == kBoth;
  V right1[kVectors], right2[kVectors], found[kVectors], out[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    right2[j] = load(w.right2 + column + j * L), found[j] = out[j] = V{};
    if (kTwo) right1[j] = load(w.right1 + column + j * L);
    if (kAdded == kLess) right1[j] = -right1[j];
    if (kAdded == kDifference) right2[j] -= load(w.right1 + column + j * L);
  }
  for (int64_t row = 0; row < rows; ++row, block += kVectors * L) {
    V factor, left1, look, query, left2 = broadcast(w.left2[row]);
    if (kDecay) factor = broadcast(w.factor[row]);
    if (kTwo) left1 = broadcast(w.left1[row]);
    if (kFound) look = broadcast(w.look[row]);
    if (kOut) query = broadcast(w.query[row]);
    for (int j = 0; j < kVectors; ++j) {
      V m = load(block + j * L);
      if (kDecay) m *= factor;
      if (kTwo) m += left1 * right1[j];
      m += left2 * right2[j];
      store(block + j * L, m);
      if (kFound) found[j] += look * m;
      if (kOut) out[j] += query * m;
    }
  }
  for (int j = 0; j < kVectors; ++j) {
    if (kFound) store(w.found + column + j * L, found[j]);
    if (kOut) store(w.out + column + j * L, out[j]);
  }
}

template <class T, bool kDecay, Added kAdded, bool kFound, bool kOut>
void matrix_steps(const MatrixStep<T>* steps, int64_t count, T* matrix, int64_t rows,
                  int64_t columns) {
  blocks_of<T>(columns, [&](int64_t column, auto vectors) {
    for (int64_t n = 0; n < count; ++n)
      matrix_step<T, kDecay, kAdded, kFound, kOut, decltype(vectors)::value>(
          steps[n], matrix + column * rows, rows, column);
  });
}

// The real steps of a chunk, their vectors, and vectors of zeros and ones, and one that nobody
// reads.
template <class T>
struct Vectors : Steps {
  int64_t D, E, P, Q;
  T *zeros, *ones, *unread;
  T *q, *k, *w, *a, *b, *v, *ys, *r;
  T *d_q, *d_k, *d_w, *d_a, *d_b, *d_v, *d_ys, *u;  // of backward
  MatrixStep<T> matrix_steps[kMemoryChunk + 1];
};

template <class T>
T* place(Vectors<T>& of, const DeltaRule<T>& s, T* scratch, bool backward) {
  of.D = s.keys, of.E = s.values, of.P = padded<T>(s.keys), of.Q = padded<T>(s.values);
  auto take = [&](int64_t size, auto&... to) { ((to = scratch, scratch += size), ...); };
  int64_t line = of.P > of.Q ? of.P : of.Q, keys = s.chunk * of.P, values = s.chunk * of.Q;
  take(line, of.zeros, of.ones, of.unread);
  for (int64_t i = 0; i < line; ++i) of.zeros[i] = 0, of.ones[i] = 1;
  take(keys, of.q, of.k, of.w, of.a, of.b);
  take(values, of.v, of.ys, of.r);
  if (!backward) return scratch;
  take(keys, of.d_q, of.d_k, of.d_w, of.d_a, of.d_b);
  take(values, of.d_v, of.d_ys, of.u);
  return scratch;
}

// The steps of a chunk; `skip(t)` is called for each that is not real.
template <class T, class Skip>
void gather_all(Vectors<T>& c, const DeltaRule<T>& s, int64_t first, Skip skip) {
  int64_t last = first + s.chunk < s.steps ? first + s.chunk : s.steps;
  collect_steps(s, first, last, c, [] {}, [](int64_t, int64_t) {}, skip);
  gather(c.q, s.q, c, c.D, c.P), gather(c.k, s.k, c, c.D, c.P), gather(c.v, s.v, c, c.E, c.Q);
  if (s.removal != kRemovesNothing) gather(c.b, s.b, c, c.D, c.P);
  if (s.removal == kRemovesApart) gather(c.a, s.a, c, c.D, c.P);
  if (!s.decays) return;
  gather(c.w, s.log_w, c, s.decays, c.P);
  for (int64_t n = 0; n < c.count; ++n) {
    T* w = c.w + n * c.P;
    if (s.decays == 1) {
      auto one = Functions<T>::vexp(broadcast(w[0]));
      for (int64_t i = 0; i < c.P; i += kLanes<T>) store(w + i, one);
    } else {
      for (int64_t i = 0; i < c.P; i += kLanes<T>)
        store(w + i, Functions<T>::vexp(load(w + i)));
    }
  }
}

// A matrix [rows][columns] as blocks of columns, filled up with zeros; and back. Either may be
// transposed: the distance from row to row, and from column to column, of what is not in blocks.
template <class T>
void into_blocks(T* to, const T* from, int64_t rows, int64_t columns, int64_t padded,
                 int64_t row_step, int64_t column_step) {
  blocks_of<T>(padded, [&](int64_t column, auto vectors) {
    constexpr int kWidth = decltype(vectors)::value * kLanes<T>;
    int64_t width = columns - column < kWidth ? columns - column : kWidth;
    for (int64_t row = 0; row < rows; ++row, to += kWidth) {
      const T* at = from + row * row_step + column * column_step;
      for (int64_t i = 0; i < width; ++i) to[i] = at[i * column_step];
      for (int64_t i = width < 0 ? 0 : width; i < kWidth; ++i) to[i] = 0;
    }
  });
}
template <class T>
void out_of_blocks(T* to, const T* from, int64_t rows, int64_t columns, int64_t padded) {
  blocks_of<T>(padded, [&](int64_t column, auto vectors) {
    constexpr int kWidth = decltype(vectors)::value * kLanes<T>;
    int64_t width = columns - column < kWidth ? columns - column : kWidth;
    for (int64_t row = 0; row < rows; ++row, from += kWidth)
      if (width > 0) copy(to + row * columns + column, from, width);
  });
}

// Steps of one episode, from the memory before them. It finds r, and ys if kOut.
template <class T, bool kDecay, Removal kRemoval, bool kOut>
void ahead(Vectors<T>& c, bool before, T* memory, int64_t begin, int64_t end) {
  const int64_t P = c.P, Q = c.Q, count = end - begin + 1;
  for (int64_t j = 0; j < count; ++j) {
    MatrixStep<T>& to = c.matrix_steps[j];
    to = {c.ones, c.zeros, c.zeros, c.zeros, c.zeros, c.zeros, c.zeros, c.unread, c.unread};
    int64_t n = begin + j, last = n - 1;
    if (j) {
      to.factor = c.w + last * P, to.left1 = c.a + last * P, to.right1 = c.r + last * Q;
      to.left2 = c.k + last * P, to.right2 = c.v + last * Q;
    }
    if (n < end) to.look = c.b + n * P, to.found = c.r + n * Q;
    int64_t read = before ? n : last;
    if (read >= begin && read < end) to.query = c.q + read * P, to.out = c.ys + read * Q;
  }
  constexpr bool kFound = kRemoval != kRemovesNothing;
  constexpr Added kAdded = !kFound ? kOne : kRemoval == kRemovesAtKey ? kDifference : kBoth;
  int64_t first = kFound || before ? 0 : 1;  // the first one only reads
  matrix_steps<T, kDecay, kAdded, kFound, kOut>(c.matrix_steps + first, count - first, memory, c.D,
                                                Q);
}

// The same steps back: from the gradient of the memory after them to that before them, both without
// what later episodes say. It finds d_v, and u, which is -d_v where a is -k.
template <class T, bool kDecay, Removal kRemoval>
void back(Vectors<T>& c, bool before, T* gradient, int64_t begin, int64_t end) {
  const int64_t P = c.P, Q = c.Q, count = end - begin + 1;
  T* u = kRemoval == kRemovesAtKey ? c.d_v : c.u;
  for (int64_t j = 0; j < count; ++j) {
    MatrixStep<T>& to = c.matrix_steps[j];
    to = {c.ones, c.zeros, c.zeros, c.zeros, c.zeros, c.zeros, c.zeros, c.unread, c.unread};
    int64_t n = end - 1 - j, last = n + 1;
    if (j) to.factor = c.w + last * P, to.left1 = c.b + last * P, to.right1 = u + last * Q;
    int64_t read = before ? last : n;
    if (read >= begin && read < end) to.left2 = c.q + read * P, to.right2 = c.d_ys + read * Q;
    if (n < begin) continue;
    to.look = c.a + n * P, to.found = c.u + n * Q;
    to.query = c.k + n * P, to.out = c.d_v + n * Q;
  }
  constexpr bool kApart = kRemoval == kRemovesApart;
  constexpr Added kAdded = kRemoval == kRemovesNothing ? kOne : kApart ? kBoth : kLess;
  matrix_steps<T, kDecay, kAdded, kApart, true>(c.matrix_steps, count, gradient, c.D, Q);
  if (kRemoval != kRemovesAtKey) return;
  for (int64_t i = begin * Q; i < end * Q; i += kLanes<T>) store(c.u + i, -load(c.d_v + i));
}

// A step n of a block of keys, in lanes, [E][keys]: from a memory to the one after it. Where a is
// -k, v is by now v - r.
template <class T, bool kDecay, Removal kRemoval, int kVectors>
inline void keys_ahead(const Vectors<T>& c, bool before, const T* from, T* to, int64_t n,
                       int64_t column) {
  typedef typename Vector<T>::type V;
  constexpr int L = kLanes<T>;
  constexpr bool kFound = kRemoval != kRemovesNothing, kLeft = kRemoval == kRemovesApart;
  const int64_t at = n * c.P + column;
  const T *v = c.v + n * c.Q, *r = c.r + n * c.Q, *u = c.u + n * c.Q, *d_y = c.d_ys + n * c.Q;
  V w[kVectors], a[kVectors], k[kVectors], d_q[kVectors], d_b[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    if (kDecay) w[j] = load(c.w + at + j * L);
    if (kLeft) a[j] = load(c.a + at + j * L);
    k[j] = load(c.k + at + j * L), d_q[j] = d_b[j] = V{};
  }
  for (int64_t row = 0; row < c.E; ++row, from += kVectors * L, to += kVectors * L) {
    V left, found, written = broadcast(v[row]), query = broadcast(d_y[row]);
    if (kLeft) left = broadcast(r[row]);
    if (kFound) found = broadcast(u[row]);
    for (int j = 0; j < kVectors; ++j) {
      V m = load(from + j * L);
      if (kFound) d_b[j] += found * m;
      if (before) d_q[j] += query * m;
      if (kDecay) m *= w[j];
      if (kLeft) m += left * a[j];
      m += written * k[j];
      if (!before) d_q[j] += query * m;
      store(to + j * L, m);
    }
  }
  for (int j = 0; j < kVectors; ++j) {
    store(c.d_q + at + j * L, d_q[j]);
    if (kFound) store(c.d_b + at + j * L, d_b[j]);
  }
}

// And back: from the gradient of the memory after it to that before it, with the memory before it.
template <class T, bool kDecay, Removal kRemoval, int kVectors>
inline void keys_back(const Vectors<T>& c, bool before, const T* memory, T* gradient, int64_t n,
                      int64_t column) {
  typedef typename Vector<T>::type V;
  constexpr int L = kLanes<T>;
  constexpr bool kFound = kRemoval != kRemovesNothing, kLeft = kRemoval == kRemovesApart;
  const int64_t at = n * c.P + column;
  const T *v = c.v + n * c.Q, *r = c.r + n * c.Q, *u = c.u + n * c.Q, *d_y = c.d_ys + n * c.Q;
  V w[kVectors], b[kVectors], q[kVectors], d_k[kVectors], d_a[kVectors], d_w[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    if (kDecay) w[j] = load(c.w + at + j * L);
    if (kFound) b[j] = load(c.b + at + j * L);
    q[j] = load(c.q + at + j * L), d_k[j] = d_a[j] = d_w[j] = V{};
  }
  for (int64_t row = 0; row < c.E; ++row, memory += kVectors * L, gradient += kVectors * L) {
    V left, found, written = broadcast(v[row]), query = broadcast(d_y[row]);
    if (kLeft) left = broadcast(r[row]);
    if (kFound) found = broadcast(u[row]);
    for (int j = 0; j < kVectors; ++j) {
      V m = load(gradient + j * L);
      if (!before) m += query * q[j];
      d_k[j] += written * m;
      if (kLeft) d_a[j] += left * m;
      if (kDecay) d_w[j] += load(memory + j * L) * m, m *= w[j];
      if (kFound) m += found * b[j];
      if (before) m += query * q[j];
      store(gradient + j * L, m);
    }
  }
  for (int j = 0; j < kVectors; ++j) {
    store(c.d_k + at + j * L, d_k[j]);
    if (kLeft) store(c.d_a + at + j * L, d_a[j]);
    if (kDecay) store(c.d_w + at + j * L, d_w[j] * w[j]);
  }
}

// A kernel's function by what there is.
template <class T, template <class, bool, Removal> class Kernel>
inline void by_rule(const DeltaRule<T>& s, T* scratch) {
  auto run = [&](auto decay) {
    constexpr bool kDecay = decltype(decay)::value;
    if (s.removal == kRemovesNothing) Kernel<T, kDecay, kRemovesNothing>::run(s, scratch);
    if (s.removal == kRemovesAtKey) Kernel<T, kDecay, kRemovesAtKey>::run(s, scratch);
    if (s.removal == kRemovesApart) Kernel<T, kDecay, kRemovesApart>::run(s, scratch);
  };
  s.decays ? run(Count<1>()) : run(Count<0>());
}

template <class T, bool kDecay, Removal kRemoval>
struct DeltaForward {
  static void run(const DeltaRule<T>& s, T* scratch) {
    Vectors<T> c;
    T* memory = place(c, s, scratch, false);
    const int64_t size = c.D * c.Q;
    into_blocks(memory, s.state, c.D, c.E, c.Q, c.E, int64_t(1));
    for (int64_t first = 0; first < s.steps; first += s.chunk) {
      if (s.saved)
        out_of_blocks(s.saved + first / s.chunk * s.saved_step, memory, c.D, c.E, c.Q);
      gather_all(c, s, first, [&](int64_t t) { none<T>(s.ys, t, c.E); });
      stretches(c, [&](int64_t begin, int64_t end) {
        if (c.fresh[begin]) zero(memory, size);
        if (s.ys.data) ahead<T, kDecay, kRemoval, true>(c, s.before, memory, begin, end);
        else ahead<T, kDecay, kRemoval, false>(c, s.before, memory, begin, end);
      });
      if (c.fresh[c.count]) zero(memory, size);
      scatter(s.ys, c.ys, c, c.E, c.Q);
    }
    out_of_blocks(s.final_state, memory, c.D, c.E, c.Q);
  }
};

template <class T, bool kDecay, Removal kRemoval>
struct DeltaBackward {
  static void run(const DeltaRule<T>& s, T* scratch) {
    Vectors<T> c;
    T* memory = place(c, s, scratch, true);
    const int64_t size = c.D * c.Q, keys_size = c.E * c.P;
    T *gradient = memory + size, *keys_gradient = gradient + size;
    T* history = keys_gradient + keys_size;
    auto forget = [&] { zero(gradient, size), zero(keys_gradient, keys_size); };
    forget();
    if (s.d_final) {
      into_blocks(gradient, s.d_final, c.D, c.E, c.Q, c.E, int64_t(1));
      into_blocks(keys_gradient, s.d_final, c.E, c.D, c.P, int64_t(1), c.E);
    }
    for (int64_t at = (s.steps + s.chunk - 1) / s.chunk - 1; at >= 0; --at) {
      gather_all(c, s, at * s.chunk, [&](int64_t t) {
        none<T>(s.d_q, t, c.D), none<T>(s.d_k, t, c.D), none<T>(s.d_v, t, c.E);
        none<T>(s.d_log_w, t, s.decays), none<T>(s.d_a, t, c.D), none<T>(s.d_b, t, c.D);
      });
      gather(c.d_ys, s.d_ys, c, c.E, c.Q);
      if (c.fresh[c.count]) forget();
      const T* saved = s.saved + at * s.saved_step;
      if (kRemoval != kRemovesNothing) {
        into_blocks(memory, saved, c.D, c.E, c.Q, c.E, int64_t(1));
        stretches(c, [&](int64_t begin, int64_t end) {
          if (c.fresh[begin]) zero(memory, size);
          ahead<T, kDecay, kRemoval, false>(c, s.before, memory, begin, end);
        });
      }
      for (int64_t i = 0; kRemoval == kRemovesAtKey && i < c.count * c.Q; i += kLanes<T>)
        store(c.v + i, load(c.v + i) - load(c.r + i));
      stretches_back(c, [&](int64_t begin, int64_t end) {
        back<T, kDecay, kRemoval>(c, s.before, gradient, begin, end);
        if (c.fresh[begin]) zero(gradient, size);
      });
      of_keys(c, s.before, saved, history, keys_gradient);
      scatter(s.d_q, c.d_q, c, c.D, c.P), scatter(s.d_k, c.d_k, c, c.D, c.P);
      scatter(s.d_v, c.d_v, c, c.E, c.Q);
      if (kRemoval != kRemovesNothing) scatter(s.d_b, c.d_b, c, c.D, c.P);
      if (kRemoval == kRemovesApart) scatter(s.d_a, c.d_a, c, c.D, c.P);
      for (int64_t n = 0; s.decays == 1 && n < c.count; ++n)
        c.d_w[n * c.P] = dot(c.d_w + n * c.P, c.ones, c.D);
      if (kDecay) scatter(s.d_log_w, c.d_w, c, s.decays, c.P);
    }
    out_of_blocks(s.d_state, gradient, c.D, c.E, c.Q);
  }

  // The gradients of a chunk's keys. The memories before its steps are kept where a decay's
  // gradient needs them, for one block of keys at a time.
  static void of_keys(const Vectors<T>& c, bool before, const T* saved, T* history, T* gradient) {
    blocks_of<T>(c.P, [&](int64_t column, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value, kWidth = kVectors * kLanes<T>;
      const int64_t size = c.E * kWidth, step = kDecay ? size : 0;
      for (int64_t e = 0; e < c.E; ++e)
        for (int64_t i = 0; i < kWidth; ++i)
          history[e * kWidth + i] = column + i < c.D ? saved[(column + i) * c.E + e] : 0;
      for (int64_t n = 0; n < c.count; ++n) {
        T* at = history + n * step;
        if (c.fresh[n]) zero(at, size);
        keys_ahead<T, kDecay, kRemoval, kVectors>(c, before, at, at + step, n, column);
      }
      T* block = gradient + column * c.E;
      for (int64_t n = c.count - 1; n >= 0; --n) {
        keys_back<T, kDecay, kRemoval, kVectors>(c, before, history + n * step, block, n, column);
        if (c.fresh[n]) zero(block, size);
      }
    });
  }
};

template <class T>
void delta_forward(const DeltaRule<T>& s, T* scratch) {
  by_rule<T, DeltaForward>(s, scratch);
}

template <class T>
void delta_backward(const DeltaRule<T>& s, T* scratch) {
  by_rule<T, DeltaBackward>(s, scratch);
}

}  // namespace
