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

template <class T>
struct Functions;

// Single precision: polynomials, at most 2 units in the last place off. What is too small for a
// normal number is 0, as elsewhere in XLA's programs on a CPU. NaN gives NaN.
template <>
struct Functions<float> {
  typedef Vector<float>::type V;
  typedef Vector<float>::bits I;

  static V splat(float x) { return V{} + x; }
  template <class C>
  static V where(C c, V a, V b) { return c ? a : b; }

  static V vexp(V x) {
    V clamped = where(x < -104.f, splat(-104.f), where(x > 89.f, splat(89.f), x));
    V shifted = clamped * 1.44269504f + 12582912.f;  // the integer, in the low bits
    V n = shifted - 12582912.f;
    V r = clamped - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    // In pairs, not one after the other: a step of one row waits for each result.
    V rr = r * r;
    V p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * rr + (8.3334519073e-3f * r + 4.1665795894e-2f);
    p = p * rr + (1.6666665459e-1f * r + 5.0000001201e-1f);
    p = p * rr + r + 1.f;
    // 2^n in two halves: 2^128 is no number, though e^88.7 is one.
    I k = (I)shifted - 0x4b400000;
    I half = k >> 1, rest = k - half;
    I one = (half + 127) << 23, two = (rest + 127) << 23;
    return p * (V)one * (V)two;
  }

  static V vlogistic(V x) { return 1.f / (1.f + vexp(-x)); }

  static V vtanh(V x) {
    V a = where(x < 0.f, -x, x), z = x * x;
    V p = -5.70498872745e-3f * z + 2.06390887954e-2f;
    p = p * (z * z) + (-5.37397155531e-2f * z + 1.33314422036e-1f);
    p = p * z - 3.33332819422e-1f;
    V small = p * z * x + x;
    V large = 1.f - 2.f / (vexp(a + a) + 1.f);
    return where(a < 0.625f, small, where(x < 0.f, -large, large));
  }
};

// Double precision: the C library's.
template <>
struct Functions<double> {
  typedef Vector<double>::type V;

  static V splat(double x) { return V{} + x; }
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
