// What a core can do at most: multiply-adds in registers, none of which waits for another.

namespace {

// 2 operations for each lane of kChains vectors, `rounds` times. The result is so that it is made.
template <class T>
T multiply_adds(int64_t rounds) {
  typedef typename Vector<T>::type V;
  volatile T half = T(0.5), one = T(1);  // or the compiler would know the sums
  const V a = broadcast(T(half)), b = broadcast(T(one));
  V sums[kChains];
  for (V& sum : sums) sum = b;
  for (int64_t i = 0; i < rounds; ++i)
    for (V& sum : sums) sum = sum * a + b;
  V total = V{};
  for (V& sum : sums) total += sum;
  return total[0];
}

}  // namespace
