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

// a * b, and a * b + c.
template <class T, bool kComplex, class V>
inline V times(V a, V b) {
  if constexpr (!kComplex) return a * b;
  else return Pairs<T>::real(a) * b + Pairs<T>::imaginary(a) * Pairs<T>::turned(b);
}
template <class T, bool kComplex, class V>
inline V times_plus(V a, V b, V c) {
  if constexpr (!kComplex) return a * b + c;
  else return Pairs<T>::real(a) * b + (Pairs<T>::imaginary(a) * Pairs<T>::turned(b) + c);
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

// What a worker keeps of a task's columns; zero at first.
template <class T>
struct Columns {
  const LinearScan& scan;
  int64_t first, count;
  T* memory[kScanArrays];

  Columns(const LinearScan& scan, int64_t first, int64_t count, T* scratch)
      : scan(scan), first(first), count(count) {
    for (T*& each : memory) {
      each = scratch, scratch += kScanColumns;
      zero(each, count);
    }
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

  // `run(begin, end, real, start)` for each stretch of columns of step t that share flags.
  template <class Run>
  void rows(int64_t t, Run run) const {
    if (!scan.mask && !scan.starts) return run(int64_t{0}, count, true, false);
    int64_t row = first / scan.width, end = (row + 1) * scan.width - first;
    for (int64_t i = 0; i < count; i = end, end += scan.width, ++row) {
      int64_t at = t * scan.rows + row;
      run(i, end < count ? end : count, !scan.mask || scan.mask[at],
          scan.starts && scan.starts[at]);
    }
  }
};

template <class T, bool kComplex>
void linear_scan_forward(const LinearScan& s, int64_t first, int64_t count, T* scratch) {
  Columns<T> columns(s, first, count, scratch);
  auto [h, factors, a_memory, b_memory, out_memory, kept_memory, u0, u1, u2] = columns.memory;
  (void)u0, (void)u1, (void)u2;
  read(h, s.h0.data, s.h0.storage, first, count);
  if (s.constant) columns.repeat(factors, s.a);
  for (int64_t k = 0; k < s.steps; ++k) {
    int64_t t = s.reverse ? s.steps - 1 - k : k, at = t * s.columns + first;
    const T* a = s.constant ? factors : from(s.a, at, count, a_memory);
    const T* b = from(s.b, at, count, b_memory);
    T *out = into(s.hs, at, out_memory), *kept = into(s.before, at, kept_memory);
    columns.rows(t, [&](int64_t i, int64_t end, bool real, bool start) {
      if (start) zero(h + i, end - i);
      if (s.before.data) copy(kept + i, h + i, end - i);
      if (!real) return zero(out + i, end - i);
      vectors<T>(i, end, [&](int64_t j, int lanes) {
        auto next = times_plus<T, kComplex>(get(a + j, lanes), get(h + j, lanes), get(b + j, lanes));
        put(h + j, next, lanes);
        put(out + j, next, lanes);
      });
    });
    finish(s.hs, at, count, out_memory);
  }
  write(s.final.data, h, s.final.storage, first, count);
}

// How many steps are summed before their sum is added to that of the others: rounding then grows
// with this and with T over this, and not with T.
constexpr int64_t kSummed = 256;

template <class T, bool kComplex>
void linear_scan_backward(const LinearScan& s, int64_t first, int64_t count, T* scratch) {
  Columns<T> columns(s, first, count, scratch);
  auto [d, factors, a_memory, d_hs_memory, before_memory, d_b_memory, d_a_memory, sum, total] =
      columns.memory;
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
    columns.rows(t, [&](int64_t i, int64_t end, bool real, bool start) {
      if (!real) {
        zero(d_b + i, end - i);
        if (!s.constant) zero(d_a + i, end - i);
        if (start) zero(d + i, end - i);
        return;
      }
      auto run = [&](auto begins, auto sums) {
        vectors<T>(i, end, [&](int64_t j, int lanes) {
          typedef typename Vector<T>::type V;
          V g = get(d + j, lanes) + get(d_hs + j, lanes);
          V h = begins ? V{} : get(before + j, lanes);
          put(d_b + j, g, lanes);
          put(d_a + j, sums ? times_plus<T, kComplex>(g, h, get(sum + j, lanes))
                            : times<T, kComplex>(g, h), lanes);
          put(d + j, begins ? V{} : times<T, kComplex>(get(a + j, lanes), g), lanes);
        });
      };
      start ? run(true, s.constant) : run(false, s.constant);
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

// Real or complex.
template <class T>
void scan_forward(const LinearScan& s, int64_t first, int64_t count, T* scratch) {
  (s.complex ? linear_scan_forward<T, true> : linear_scan_forward<T, false>)(s, first, count, scratch);
}
template <class T>
void scan_backward(const LinearScan& s, int64_t first, int64_t count, T* scratch) {
  (s.complex ? linear_scan_backward<T, true> : linear_scan_backward<T, false>)(s, first, count, scratch);
}

}  // namespace
