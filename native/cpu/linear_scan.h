// The linear recurrence h_t = a_t h_{t-1} + b_t, real or complex, and its gradient
//
//   d_b[t] = d_hs[t] + a[t+1] d_b[t+1]        d_a[t] = d_b[t] h[t-1]
//
// Step after step: what is carried stays in the first level of the cache, so that memory is read
// and written once. Whatever a column's place in a vector, it meets the same operations: a task's
// last columns are a vector too, filled up with zeros.

#include "linear_scan_task.h"

namespace {

using namespace jaxrnn;

// (x, y) of each complex number becomes (x, x), (-y, y), (y, x).
template <class T>
struct Pairs {
  typedef typename Vector<T>::type V;
  typedef typename Vector<T>::bits I;
  static constexpr int L = kLanes<T>;

  template <class Index>
  static V picked(V v, Index index) {
#if defined(__clang__)
    V out;
    for (int i = 0; i < L; ++i) out[i] = v[index(i)];
    return out;
#else
    I at;
    for (int i = 0; i < L; ++i) at[i] = index(i);
    return __builtin_shuffle(v, at);
#endif
  }
  static V real(V v) {
    return picked(v, [](int i) { return i & ~1; });
  }
  static V imaginary(V v) {
    constexpr auto kSign = sizeof(T) == 4 ? INT32_MIN : INT64_MIN;
    I sign{};
    for (int i = 0; i < L; i += 2) sign[i] = kSign;
    return (V)((I)picked(v, [](int i) { return i | 1; }) ^ sign);
  }
  static V turned(V v) {
    return picked(v, [](int i) { return i ^ 1; });
  }
};

// a * b + c, and a * b. Each product has a sum of its own to be fused with: of `x * y + z * w` the
// compiler would fuse one or the other, not the same in every place.
template <class T, bool kComplex, class V>
inline V times_plus(V a, V b, V c) {
  if constexpr (!kComplex) return a * b + c;
  else return Pairs<T>::real(a) * b + (Pairs<T>::imaginary(a) * Pairs<T>::turned(b) + c);
}
template <class T, bool kComplex, class V>
inline V times(V a, V b) {
  if constexpr (!kComplex) return a * b;
  else return times_plus<T, kComplex>(a, b, V{});
}

// The first `count` lanes; the others are 0.
template <class T>
inline typename Vector<T>::type get(const T* p, int count) {
  if (count == kLanes<T>) return load(p);
  typename Vector<T>::type v{};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

template <class T>
inline void put(T* p, typename Vector<T>::type v, int count) {
  if (count == kLanes<T>) return store(p, v);
  for (int i = 0; i < count; ++i) p[i] = v[i];
}

// `run(first, lanes)` for each vector of numbers `i` .. `end - 1`.
template <class T, class Run>
inline void vectors(int64_t i, int64_t end, Run run) {
  constexpr int L = kLanes<T>;
  for (; i + L <= end; i += L) run(i, L);
  if (i < end) run(i, static_cast<int>(end - i));
}

// Numbers `at` .. `at + count - 1` where they are, if they are of type T; else in `memory`.
template <class T>
inline const T* from(const Numbers& numbers, int64_t at, int64_t count, T* memory) {
  if (!numbers.data) return memory;
  if (numbers.storage == kSame<T>) return reinterpret_cast<const T*>(numbers.data) + at;
  read(memory, numbers.data, numbers.storage, at, count);
  return memory;
}

// Where to write them, and then `finish`.
template <class T>
inline T* into(const Numbers& numbers, int64_t at, T* memory) {
  bool here = numbers.data && numbers.storage == kSame<T>;
  return here ? reinterpret_cast<T*>(numbers.data) + at : memory;
}

template <class T>
inline void finish(const Numbers& numbers, int64_t at, int64_t count, const T* memory) {
  if (numbers.data && numbers.storage != kSame<T>)
    write(numbers.data, memory, numbers.storage, at, count);
}

// x where every bit of `bits` is set, 0 where none is; and y there.
template <class T, class V>
inline V only(V bits, V x) {
  typedef typename Vector<T>::bits I;
  return (V)((I)bits & (I)x);
}
template <class T, class V>
inline V either(V bits, V x, V y) {
  typedef typename Vector<T>::bits I;
  return (V)(((I)bits & (I)x) | (~(I)bits & (I)y));
}

// Rows with flags are run one by one, and skipped where they are not real. Those narrower than this
// would fill too few vectors: they are run together, with flags that are lanes of vectors.
constexpr int64_t kNarrow = 64;

inline bool is_mixed(const LinearScan& scan) {
  return (scan.mask || scan.starts) && scan.width < kNarrow;
}

// What a worker keeps of a task's columns.
template <class T>
struct Columns {
  const LinearScan& scan;
  int64_t first, count;
  T* memory[kScanArrays];
  T *real, *goes_on;  // every bit of a column, or none: of rows that are run together

  Columns(const LinearScan& scan, int64_t first, int64_t count, T* scratch)
      : scan(scan), first(first), count(count) {
    for (T*& each : memory) each = scratch, scratch += kScanColumns;
    real = memory[kScanArrays - 2], goes_on = memory[kScanArrays - 1];
    T every;
    memset(&every, -1, sizeof every);
    for (int64_t i = 0; is_mixed(scan) && i < count; ++i) real[i] = goes_on[i] = every;
  }

  // The columns whose rows have the flag `set` in step t; `last` is the step that was run before.
  void mark(T* to, const char* flags, bool set, int64_t t, int64_t last) const {
    if (!flags) return;
    int64_t row = first / scan.width, rows = (first + count - 1) / scan.width + 1 - row;
    const char* now = flags + t * scan.rows + row;
    if (t != last && !memcmp(now, flags + last * scan.rows + row, rows)) return;
    T every;
    memset(&every, -1, sizeof every);
    int64_t i = 0, end = (row + 1) * scan.width - first;
    if (scan.width == 1)  // in vectors
      for (; i < count; ++i) to[i] = (now[i] != 0) == set ? every : T(0);
    for (; i < count; end += scan.width) {
      T bits = (*now++ != 0) == set ? every : T(0);
      for (; i < end && i < count; ++i) to[i] = bits;
    }
  }
  void mark(int64_t t, int64_t last) const {
    mark(real, scan.mask, true, t, last), mark(goes_on, scan.starts, false, t, last);
  }

  // A row's numbers, for the columns of every row.
  void repeat(T* to, const Numbers& row) const {
    for (int64_t i = 0; i < count;) {
      int64_t at = (first + i) % scan.width, size = scan.width - at;
      if (size > count - i) size = count - i;
      read(to + i, row.data, row.storage, at, size);
      i += size;
    }
  }

  // `run(begin, end, real, start)` for each stretch of columns of step t that share flags, or for
  // all of them if their flags are marked.
  template <bool kMixed, class Run>
  void rows(int64_t t, Run run) const {
    if (kMixed || (!scan.mask && !scan.starts)) return run(int64_t{0}, count, true, false);
    int64_t row = first / scan.width, end = (row + 1) * scan.width - first;
    for (int64_t i = 0; i < count; i = end, end += scan.width, ++row) {
      int64_t at = t * scan.rows + row;
      run(i, end < count ? end : count, !scan.mask || scan.mask[at],
          scan.starts && scan.starts[at]);
    }
  }
};

template <class T, bool kComplex, bool kMixed>
void linear_scan_forward(const LinearScan& s, int64_t first, int64_t count, T* scratch) {
  Columns<T> columns(s, first, count, scratch);
  T* const* memory = columns.memory;
  T *h = memory[0], *factors = memory[1], *a_memory = memory[2], *b_memory = memory[3];
  T *out_memory = memory[4], *kept_memory = memory[5];
  read(h, s.h0.data, s.h0.storage, first, count);
  if (s.constant) columns.repeat(factors, s.a);
  for (int64_t k = 0; k < s.steps; ++k) {
    int64_t t = s.reverse ? s.steps - 1 - k : k, at = t * s.columns + first;
    const T* a = s.constant ? factors : from(s.a, at, count, a_memory);
    const T* b = from(s.b, at, count, b_memory);
    T *out = into(s.hs, at, out_memory), *kept = into(s.before, at, kept_memory);
    if (kMixed) columns.mark(t, k ? t + (s.reverse ? 1 : -1) : t);
    columns.template rows<kMixed>(t, [&](int64_t i, int64_t end, bool real, bool start) {
      if (start) zero(h + i, end - i);
      if (s.before.data && !kMixed) copy(kept + i, h + i, end - i);
      if (!real) return zero(out + i, end - i);
      vectors<T>(i, end, [&](int64_t j, int lanes) {
        auto old = get(h + j, lanes);
        if (kMixed) old = only<T>(get(columns.goes_on + j, lanes), old);
        if (kMixed && s.before.data) put(kept + j, old, lanes);
        auto next = times_plus<T, kComplex>(get(a + j, lanes), old, get(b + j, lanes)), y = next;
        if (kMixed) {
          auto is = get(columns.real + j, lanes);
          y = only<T>(is, next), next = either<T>(is, next, old);
        }
        put(h + j, next, lanes);
        put(out + j, y, lanes);
      });
    });
    finish(s.hs, at, count, out_memory);
  }
  write(s.final.data, h, s.final.storage, first, count);
}

// How many steps are summed before their sum is added to that of the others: rounding then grows
// with this and with T over this, and not with T.
constexpr int64_t kSummed = 256;

template <class T, bool kComplex, bool kMixed>
void linear_scan_backward(const LinearScan& s, int64_t first, int64_t count, T* scratch) {
  Columns<T> columns(s, first, count, scratch);
  T* const* memory = columns.memory;
  T *d = memory[0], *factors = memory[1], *sum = memory[2], *total = memory[3];
  T *a_memory = memory[4], *d_hs_memory = memory[5], *before_memory = memory[6];
  T *d_b_memory = memory[7], *d_a_memory = memory[8];
  // Sums, of factors that are not constant too, and what a call may not have.
  T* zeros[] = {d, sum, total, d_hs_memory, before_memory};
  for (T* each : zeros) zero(each, count);
  if (s.d_final.data) read(d, s.d_final.data, s.d_final.storage, first, count);
  if (s.constant) columns.repeat(factors, s.a);
  for (int64_t k = 0; k < s.steps; ++k) {
    int64_t t = s.reverse ? k : s.steps - 1 - k, at = t * s.columns + first;
    int64_t earlier = at + (s.reverse ? s.columns : -s.columns);
    const T* a = s.constant ? factors : from(s.a, at, count, a_memory);
    const T* d_hs = from(s.d_hs, at, count, d_hs_memory);
    const T* before = s.before.data      ? from(s.before, at, count, before_memory)
                      : k + 1 < s.steps ? from(s.hs, earlier, count, before_memory)
                                        : from(s.h0, first, count, before_memory);
    T *d_b = into(s.d_b, at, d_b_memory), *d_a = s.constant ? sum : into(s.d_a, at, d_a_memory);
    if (kMixed) columns.mark(t, k ? t + (s.reverse ? -1 : 1) : t);
    columns.template rows<kMixed>(t, [&](int64_t i, int64_t end, bool real, bool start) {
      if (!real) {
        zero(d_b + i, end - i);
        if (!s.constant) zero(d_a + i, end - i);
        if (start) zero(d + i, end - i);
        return;
      }
      vectors<T>(i, end, [&](int64_t j, int lanes) {
        typedef typename Vector<T>::type V;
        V old = get(d + j, lanes), g = old + get(d_hs + j, lanes);
        V h = start ? V{} : get(before + j, lanes);
        V f = get(a + j, lanes), of_b = g, next = start ? V{} : times<T, kComplex>(f, g);
        if (kMixed) h = only<T>(get(columns.goes_on + j, lanes), h);
        V before_a = get(sum + j, lanes), of_a = times_plus<T, kComplex>(g, h, before_a);
        if (kMixed) {
          V is = get(columns.real + j, lanes);
          of_b = only<T>(is, g), next = either<T>(is, next, old);
          of_a = either<T>(is, of_a, before_a);
          next = only<T>(get(columns.goes_on + j, lanes), next);
        }
        put(d_b + j, of_b, lanes);
        put(d_a + j, of_a, lanes);
        put(d + j, next, lanes);
      });
    });
    finish(s.d_b, at, count, d_b_memory);
    if (!s.constant) finish(s.d_a, at, count, d_a_memory);
    if (s.constant && ((k + 1) % kSummed == 0 || k + 1 == s.steps)) {
      vectors<T>(0, count, [&](int64_t j, int lanes) {
        put(total + j, get(total + j, lanes) + get(sum + j, lanes), lanes);
      });
      zero(sum, count);
    }
  }
  write(s.d_h0.data, d, s.d_h0.storage, first, count);
  if (s.constant && s.d_a.data) write(s.d_a.data, total, s.d_a.storage, first, count);
}

// Real or complex, with rows run together or not.
template <class T>
void scan_forward(const LinearScan& s, int64_t first, int64_t count, T* scratch) {
  auto* run = s.complex ? is_mixed(s) ? linear_scan_forward<T, true, true>
                                      : linear_scan_forward<T, true, false>
              : is_mixed(s) ? linear_scan_forward<T, false, true>
                            : linear_scan_forward<T, false, false>;
  run(s, first, count, scratch);
}
template <class T>
void scan_backward(const LinearScan& s, int64_t first, int64_t count, T* scratch) {
  auto* run = s.complex ? is_mixed(s) ? linear_scan_backward<T, true, true>
                                      : linear_scan_backward<T, true, false>
              : is_mixed(s) ? linear_scan_backward<T, false, true>
                            : linear_scan_backward<T, false, false>;
  run(s, first, count, scratch);
}

}  // namespace
