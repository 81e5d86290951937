// Vectors of one instruction set, and the three functions that gates are made of.
//
// Included by isa.cc, which is compiled once for each instruction set. Nothing here may be inline
// across files: a function of the standard library compiled for AVX-512 and merged with another
// file's by the linker would run on a machine without it. So: no C++ headers, all names local.

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

template <class T>
struct Vector;

template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(JAXRNN_BYTES), aligned(4), may_alias));
  typedef int32_t bits __attribute__((vector_size(JAXRNN_BYTES)));
};

template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(JAXRNN_BYTES), aligned(8), may_alias));
  typedef int64_t bits __attribute__((vector_size(JAXRNN_BYTES)));
};

template <class T>
constexpr int kLanes = JAXRNN_BYTES / sizeof(T);

template <class T>
inline typename Vector<T>::type load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::type*>(p);
}

template <class T>
inline void store(T* p, typename Vector<T>::type v) {
  *reinterpret_cast<typename Vector<T>::type*>(p) = v;
}

// x in every lane, as one broadcast. `x - 0` is x for every x, so the subtraction folds away. `0 + x`
// is not: -0 would become 0. There the compiler has to add, once for each scalar, before it can
// broadcast from a register, on the ports that multiply-adds need.
template <class T>
inline typename Vector<T>::type broadcast(T x) {
  return x - typename Vector<T>::type{};
}

template <class T>
struct Functions;

// Single precision: polynomials, at most 2 units in the last place off. What is too small for a
// normal number is 0, as elsewhere in XLA's programs on a CPU. NaN gives NaN.
template <>
struct Functions<float> {
  typedef Vector<float>::type V;
  typedef Vector<float>::bits I;

  static V splat(float x) { return broadcast(x); }
  template <class C>
  static V where(C c, V a, V b) { return c ? a : b; }

  // e^x = 2^n (1 + tail), with n in the low bits of `power`.
  struct Parts {
    I power;
    V tail;
  };
  static Parts parts(V x) {
    V shifted = x * 1.44269504f + 12582912.f;  // the integer, in the low bits
    V n = shifted - 12582912.f;
    V r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    // In pairs, not one after the other: a step of one row waits for each result.
    V rr = r * r;
    V p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * rr + (8.3334519073e-3f * r + 4.1665795894e-2f);
    p = p * rr + (1.6666665459e-1f * r + 5.0000001201e-1f);
    return {(I)shifted, p * rr + r};
  }
  // 2^n, for -127 < n < 128.
  static V scale(I power) { return (V)((power << 23) + 0x3f800000); }

  static V vexp(V x) {
    Parts e = parts(where(x < -104.f, splat(-104.f), where(x > 89.f, splat(89.f), x)));
    // In two halves: 2^128 is no number, though e^88.7 is one.
    I k = e.power - 0x4b400000;
    I half = k >> 1;
    return (e.tail + 1.f) * scale(half) * scale(k - half);
  }

  // Beyond 87 the result is 0, or 1.
  static V vlogistic(V x) {
    Parts e = parts(where(x < -87.5f, splat(87.5f), where(x > 87.f, splat(-87.f), -x)));
    V power = scale(e.power);
    return 1.f / (e.tail * power + (power + 1.f));
  }

  // m / (m + 2), with m = e^2|x| - 1, which the tail gives without a loss near 0.
  static V vtanh(V x) {
    V a = (V)((I)x & 0x7fffffff);
    Parts e = parts(where(a > 20.f, splat(40.f), a + a));
    V power = scale(e.power);
    V m = e.tail * power + (power - 1.f);
    return (V)((I)(m / (m + 2.f)) | ((I)x & (int32_t)0x80000000));
  }
};

// Double precision: the C library's.
template <>
struct Functions<double> {
  typedef Vector<double>::type V;

  static V splat(double x) { return broadcast(x); }
  template <class C>
  static V where(C c, V a, V b) { return c ? a : b; }

  static V vexp(V x) {
    for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp(x[i]);
    return x;
  }
  static V vlogistic(V x) { return 1. / (1. + vexp(-x)); }
  static V vtanh(V x) {
    for (int i = 0; i < kLanes<double>; ++i) x[i] = ::tanh(x[i]);
    return x;
  }
};

}  // namespace
