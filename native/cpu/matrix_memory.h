// The matrix memory with scalar gates, and its gradient, step after step:
//
//   C_t = f_t C_{t-1} + i_t k_t v_t'      y_t = C_t' q_t
//
//   G_t = f_{t+1} G_{t+1} + q_t d_y_t'    d_k_t = i_t G_t v_t    d_v_t = i_t G_t' k_t
//
// and d_q_t = C_t d_y_t. Each of these four is one and the same: a matrix that is scaled, to which
// the product of two vectors is added, and which is read along its rows. The second and the third
// to last read along columns, so a transposed copy is kept for each. Some steps are done at once,
// while a part of the matrix is in registers.
//
// Chunks of steps bring nothing but memories to begin a gradient from.

#include "matrix_memory_task.h"

namespace {

using namespace jaxrnn;

// The real steps of a chunk, and their gates.
template <class T>
struct Chunk : Steps {
  T m[kMemoryChunk];             // the memory is divided by exp(m)
  T kept[kMemoryChunk], written[kMemoryChunk];            // log f + m before, and log i
  alignas(64) T f[kMemoryChunk], i[kMemoryChunk];         // the gates of what is divided so
};

// Steps `first` and after, from a memory divided by exp(m). Gives the m after them; `skip(t)` is
// called for each that is not real.
template <class T, class Skip>
T collect(const MatrixMemory<T>& s, int64_t first, T m, Chunk<T>& chunk, Skip skip) {
  typedef typename Vector<T>::type V;
  int64_t end = first + kMemoryChunk < s.steps ? first + kMemoryChunk : s.steps;
  auto real = [&](int64_t n, int64_t t) {
    T kept = number<T>(s.log_f, t) + m, written = number<T>(s.log_i, t);
    // The larger one, or NaN if one is.
    if (s.stabilised) m = kept > written || kept != kept ? kept : written;
    chunk.m[n] = m, chunk.kept[n] = kept, chunk.written[n] = written;
    chunk.f[n] = kept - m, chunk.i[n] = written - m;
  };
  collect_steps(s, first, end, chunk, [&] { m = 0; }, real, skip);
  for (int64_t i = chunk.count; i < kMemoryChunk; ++i) chunk.f[i] = chunk.i[i] = 0;
  for (int64_t i = 0; i < chunk.count; i += kLanes<T>) {
    V f = Functions<T>::vexp(load(chunk.f + i)), w = Functions<T>::vexp(load(chunk.i + i));
    store(chunk.f + i, f), store(chunk.i + i, w);
  }
  return m;
}

// What a matrix [rows][columns] meets in the steps of a chunk: M <- f M + left right', and then
// out = M' query.
template <class T>
struct Meets {
  int64_t rows, columns;           // columns: padded
  const T *left, *right, *query;   // [chunk][lead], [chunk][columns], [chunk][lead]
  T* out;                          // [chunk][columns]
  int64_t lead;
};

// kSteps of them, from slot n on, or back from it: `ahead` is 1 or -1. f is of each in this order.
template <class T, int kSteps, int kVectors>
inline void steps_of_columns(const Meets<T>& w, T* matrix, int64_t column, int64_t n, int64_t ahead,
                             const T* f) {
  typedef typename Vector<T>::type V;
  constexpr int L = kLanes<T>;
  const T *left[kSteps], *query[kSteps];
  V right[kSteps][kVectors], out[kSteps][kVectors];
  for (int u = 0; u < kSteps; ++u) {
    int64_t slot = n + ahead * u;
    left[u] = w.left + slot * w.lead, query[u] = w.query + slot * w.lead;
    for (int j = 0; j < kVectors; ++j) {
      right[u][j] = load(w.right + slot * w.columns + column + j * L);
      out[u][j] = V{};
    }
  }
  for (int64_t row = 0; row < w.rows; ++row) {
    T* at = matrix + row * w.columns + column;
    V m[kVectors];
    for (int j = 0; j < kVectors; ++j) m[j] = load(at + j * L);
    for (int u = 0; u < kSteps; ++u) {
      V l = broadcast(left[u][row]), q = broadcast(query[u][row]);
      for (int j = 0; j < kVectors; ++j) {
        m[j] = m[j] * f[u] + l * right[u][j];
        out[u][j] += q * m[j];
      }
    }
    for (int j = 0; j < kVectors; ++j) store(at + j * L, m[j]);
  }
  for (int u = 0; u < kSteps; ++u)
    for (int j = 0; j < kVectors; ++j)
      store(w.out + (n + ahead * u) * w.columns + column + j * L, out[u][j]);
}

template <class T, int kSteps>
inline void steps_of(const Meets<T>& w, T* matrix, int64_t n, int64_t ahead, const T* f) {
  constexpr int L = kLanes<T>, kVectors = JAXRNN_BYTES == 64 ? 2 : 1;
  int64_t column = 0;
  for (; column + kVectors * L <= w.columns; column += kVectors * L)
    steps_of_columns<T, kSteps, kVectors>(w, matrix, column, n, ahead, f);
  for (; column < w.columns; column += L)
    steps_of_columns<T, kSteps, 1>(w, matrix, column, n, ahead, f);
}

// `count` steps from slot n on, or back from it.
template <class T>
void meet(const Meets<T>& w, T* matrix, int64_t n, int64_t count, int64_t ahead, const T* f) {
  for (; count >= 4; count -= 4, n += 4 * ahead, f += 4) steps_of<T, 4>(w, matrix, n, ahead, f);
  if (count == 3) steps_of<T, 3>(w, matrix, n, ahead, f);
  if (count == 2) steps_of<T, 2>(w, matrix, n, ahead, f);
  if (count == 1) steps_of<T, 1>(w, matrix, n, ahead, f);
}

template <class T>
void forget(T* matrix, int64_t rows, int64_t columns) {
  zero(matrix, rows * columns);
}

// The chunk's steps from a memory, or from its transpose: of the chunk and what comes after it.
template <class T>
void pass(const Meets<T>& w, T* matrix, const Chunk<T>& chunk) {
  stretches(chunk, [&](int64_t begin, int64_t end) {
    if (chunk.fresh[begin]) forget(matrix, w.rows, w.columns);
    meet(w, matrix, begin, end - begin, 1, chunk.f + begin);
  });
  if (chunk.fresh[chunk.count]) forget(matrix, w.rows, w.columns);
}

template <class T>
void scale(T* to, const T* from, const Chunk<T>& chunk, int64_t stride) {
  for (int64_t n = 0; n < chunk.count; ++n)
    for (int64_t i = 0; i < stride; ++i) to[n * stride + i] = chunk.i[n] * from[n * stride + i];
}

template <class T>
void memory_forward(const MatrixMemory<T>& s, T* scratch) {
  const int64_t D = s.keys, E = s.values, P = padded<T>(D), Q = padded<T>(E);
  T* memory = scratch;
  T *q = memory + D * Q, *k = q + kMemoryChunk * P, *v = k + kMemoryChunk * P;
  T* ys = v + kMemoryChunk * Q;
  for (int64_t d = 0; d < D; ++d) {
    copy(memory + d * Q, s.memory + d * E, E);
    zero(memory + d * Q + E, Q - E);
  }
  Chunk<T> chunk;
  T m = *s.m;
  for (int64_t first = 0; first < s.steps; first += kMemoryChunk) {
    if (s.saved) {
      int64_t at = first / kMemoryChunk;
      for (int64_t d = 0; d < D; ++d) copy(s.saved + at * s.chunk + d * E, memory + d * Q, E);
      s.saved_m[at * s.chunk_m] = m;
    }
    m = collect(s, first, m, chunk, [&](int64_t t) {
      none<T>(s.ys, t, E);
      put_number<T>(s.ms, t, 0);
    });
    gather(q, s.q, chunk, D, P), gather(k, s.k, chunk, D, P), gather(v, s.v, chunk, E, Q);
    scale(k, k, chunk, P);
    pass<T>({D, Q, k, v, q, ys, P}, memory, chunk);
    scatter(s.ys, ys, chunk, E, Q);
    for (int64_t n = 0; n < chunk.count; ++n) put_number(s.ms, chunk.time[n], chunk.m[n]);
  }
  for (int64_t d = 0; d < D; ++d) copy(s.final_memory + d * E, memory + d * Q, E);
  *s.final_m = m;
}

template <class T>
void memory_backward(const MatrixMemory<T>& s, T* scratch) {
  const int64_t D = s.keys, E = s.values, P = padded<T>(D), Q = padded<T>(E);
  T *memory = scratch, *of_rows = memory + E * P, *of_columns = of_rows + D * Q;  // C', G, G'
  T *q = of_columns + E * P, *k = q + kMemoryChunk * P, *written = k + kMemoryChunk * P;
  T *d_q = written + kMemoryChunk * P, *d_k = d_q + kMemoryChunk * P;
  T *v = d_k + kMemoryChunk * P, *d_ys = v + kMemoryChunk * Q, *d_v = d_ys + kMemoryChunk * Q;
  forget(of_rows, D, Q), forget(of_columns, E, P), forget(memory, E, P);
  for (int64_t d = 0; s.d_final && d < D; ++d)
    for (int64_t e = 0; e < E; ++e)
      of_rows[d * Q + e] = of_columns[e * P + d] = s.d_final[d * E + e];
  Chunk<T> chunk;
  T d_m = s.d_final_m ? *s.d_final_m : 0, next = 0, f[kMemoryChunk];
  T pending = 1;  // what G has yet to be scaled by, to be of the memory before the last step done
  bool last = true;  // no step is done yet
  bool any = true;   // G is of the episode that is at hand
  int64_t chunks = (s.steps + kMemoryChunk - 1) / kMemoryChunk;
  for (int64_t at = chunks - 1; at >= 0; --at) {
    collect(s, at * kMemoryChunk, s.saved_m[at * s.chunk_m], chunk, [&](int64_t t) {
      none<T>(s.d_q, t, D), none<T>(s.d_k, t, D), none<T>(s.d_v, t, E);
      put_number<T>(s.d_log_f, t, 0), put_number<T>(s.d_log_i, t, 0);
    });
    auto begin = [&] {  // an episode: what comes after it says nothing of what was before
      forget(of_rows, D, Q), forget(of_columns, E, P);
      pending = 1, next = d_m = 0, last = any = false;
    };
    if (chunk.fresh[chunk.count]) begin();
    if (!chunk.count) continue;
    for (int64_t d = 0; d < D; ++d)
      for (int64_t e = 0; e < E; ++e) memory[e * P + d] = s.saved[at * s.chunk + d * E + e];
    gather(q, s.q, chunk, D, P), gather(k, s.k, chunk, D, P), gather(v, s.v, chunk, E, Q);
    gather(d_ys, s.d_ys, chunk, E, Q);
    scale(written, k, chunk, P);
    pass<T>({E, P, v, written, d_ys, d_q, Q}, memory, chunk);
    // The gradient by the logarithm of the gate after the chunk's last step. Within the chunk it is
    // a running sum; its rounding must not reach other chunks.
    next = 0;
    if (any && !chunk.fresh[chunk.count]) {
      for (int64_t e = 0; e < E; ++e) next += dot(memory + e * P, of_columns + e * P, D);
      next *= pending;
    }
    if (last) d_m -= next;  // as the last memory is divided by exp(m)
    last = false;
    const Meets<T> rows{D, Q, q, d_ys, k, d_v, P}, columns{E, P, d_ys, q, v, d_k, Q};
    stretches_back(chunk, [&](int64_t begins, int64_t end) {
      f[0] = pending;
      for (int64_t n = 1; n < end - begins; ++n) f[n] = chunk.f[end - n];
      meet(rows, of_rows, end - 1, end - begins, -1, f);
      meet(columns, of_columns, end - 1, end - begins, -1, f);
      pending = chunk.f[begins], any = true;
      for (int64_t n = end - 1; n >= begins; --n) {
        T* of_k = d_k + n * P;
        for (int64_t i = 0; i < D; ++i) of_k[i] *= chunk.i[n];
        for (int64_t i = 0; i < E; ++i) d_v[n * Q + i] *= chunk.i[n];
        int64_t t = chunk.time[n];
        T read = dot(q + n * P, d_q + n * P, D), d_i = dot(k + n * P, of_k, D);
        T d_f = chunk.fresh[n] ? 0 : read + next - d_i;
        next = d_f;
        if (s.d_ms.data) d_m += number<T>(s.d_ms, t);
        if (s.stabilised) {
          // By m, through both gates: next - (d_f + d_i), which is -read. It was the larger one of
          // two logarithms, and between equals JAX's derivative halves it.
          d_m -= read;
          T kept = chunk.kept[n], other = chunk.written[n];
          T share = kept > other ? 1 : kept < other ? 0 : T(0.5);
          d_f += share * d_m, d_i += (1 - share) * d_m, d_m *= share;
        } else {
          d_m -= d_i;
        }
        put_number(s.d_log_f, t, d_f), put_number(s.d_log_i, t, d_i);
      }
      if (chunk.fresh[begins]) begin();
    });
    scatter(s.d_q, d_q, chunk, D, P), scatter(s.d_k, d_k, chunk, D, P);
    scatter(s.d_v, d_v, chunk, E, Q);
  }
  for (int64_t d = 0; d < D; ++d)
    for (int64_t e = 0; e < E; ++e) s.d_memory[d * E + e] = pending * of_rows[d * Q + e];
  *s.d_m = s.stabilised ? d_m + next : d_m;
}

}  // namespace
