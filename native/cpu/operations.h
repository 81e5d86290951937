// What a program can do, one line each: the name, which is JAX's where JAX has the operation, and
// the result. `a`, `b`, `c` are vectors; EACH applies a function of the C library to each element.
//
// To add an operation: a line here, and its translation in jaxrnn/_src/ops/recurrence/program.py if its
// name or its arguments are not those of the JAX primitive. Truth values are 1 and 0.

#define JAXRNN_OPERATIONS(OP)                              \
  OP(copy, a)                                              \
  OP(add, a + b)                                           \
  OP(sub, a - b)                                           \
  OP(mul, a * b)                                           \
  OP(div, a / b)                                           \
  OP(neg, -a)                                              \
  OP(fma, a * b + c)                                       \
  OP(fms, a * b - c)                                       \
  OP(fnma, c - a * b)                                      \
  OP(abs, where(a < 0, -a, a + 0))                         \
  OP(sign, where(a > 0, splat(1), where(a < 0, splat(-1), a))) \
  OP(max, where(a != a, a, where(a < b, b, where(b != b, b, a)))) \
  OP(min, where(a != a, a, where(b < a, b, where(b != b, b, a)))) \
  OP(lt, where(a < b, splat(1), splat(0)))                 \
  OP(le, where(a <= b, splat(1), splat(0)))                \
  OP(gt, where(a > b, splat(1), splat(0)))                 \
  OP(ge, where(a >= b, splat(1), splat(0)))                \
  OP(eq, where(a == b, splat(1), splat(0)))                \
  OP(ne, where(a != b, splat(1), splat(0)))                \
  OP(select, where(a != 0, b, c))                          \
  OP(exp, vexp(a))                                         \
  OP(tanh, vtanh(a))                                       \
  OP(logistic, vlogistic(a))                               \
  OP(log, EACH(log, a))                                    \
  OP(log1p, EACH(log1p, a))                                \
  OP(expm1, EACH(expm1, a))                                \
  OP(exp2, EACH(exp2, a))                                  \
  OP(sqrt, EACH(sqrt, a))                                  \
  OP(cbrt, EACH(cbrt, a))                                  \
  OP(sin, EACH(sin, a))                                    \
  OP(cos, EACH(cos, a))                                    \
  OP(tan, EACH(tan, a))                                    \
  OP(asin, EACH(asin, a))                                  \
  OP(acos, EACH(acos, a))                                  \
  OP(atan, EACH(atan, a))                                  \
  OP(sinh, EACH(sinh, a))                                  \
  OP(cosh, EACH(cosh, a))                                  \
  OP(asinh, EACH(asinh, a))                                \
  OP(acosh, EACH(acosh, a))                                \
  OP(atanh, EACH(atanh, a))                                \
  OP(erf, EACH(erf, a))                                    \
  OP(erfc, EACH(erfc, a))                                  \
  OP(floor, EACH(floor, a))                                \
  OP(ceil, EACH(ceil, a))                                  \
  OP(pow, EACH2(pow, a, b))                                \
  OP(atan2, EACH2(atan2, a, b))
