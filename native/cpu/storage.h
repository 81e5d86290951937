// Rows of any storage type, to and from the type of the arithmetic.

namespace {

using namespace jaxrnn;

inline float float_of(uint32_t bits) {
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

inline uint32_t bits_of(float x) {
  uint32_t out;
  memcpy(&out, &x, 4);
  return out;
}

inline float from_bf16(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

inline uint16_t to_bf16(float x) {
  uint32_t bits = bits_of(x);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_f16(uint16_t x) {
  uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16, rest = x & 0x7fff, bits;
  if (rest >= 0x7c00) {  // infinite or NaN
    bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
  } else if (rest >= 0x400) {
    bits = sign | ((rest << 13) + 0x38000000);
  } else {  // subnormal: a whole number of 2^-24
    float out = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -out : out;
  }
  return float_of(bits);
}

inline uint16_t to_f16(float x) {
  uint32_t bits = bits_of(x);
  uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and more round to infinity
  if (bits < 0x38800000) {                       // subnormal: let an addition round it
    return sign | static_cast<uint16_t>(bits_of(float_of(bits) + 0.5f) - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

constexpr int64_t size_of(int32_t storage) {
  return storage == kF64 ? 8 : storage == kF32 ? 4 : 2;
}

// Any length; whole vectors first, since a call of memcpy takes longer than a short row.
template <class T>
inline void copy(T* to, const T* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = from[i];
}

template <class T>
inline void zero(T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0;
}

template <class T>
inline void add(T* to, const T* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(to + i) + load(from + i));
  for (; i < count; ++i) to[i] += from[i];
}

template <class T>
inline void read(T* to, const char* from, int32_t storage, int64_t first, int64_t count) {
  if (storage == kSame<T>) return copy(to, reinterpret_cast<const T*>(from) + first, count);
  if (storage == kF32) {
    auto* p = reinterpret_cast<const float*>(from) + first;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(p[i]);
  } else if (storage == kBF16) {
    auto* p = reinterpret_cast<const uint16_t*>(from) + first;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from_bf16(p[i]));
  } else if (storage == kF16) {
    auto* p = reinterpret_cast<const uint16_t*>(from) + first;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from_f16(p[i]));
  }
}

template <class T>
inline void write(char* to, const T* from, int32_t storage, int64_t first, int64_t count) {
  if (storage == kSame<T>) return copy(reinterpret_cast<T*>(to) + first, from, count);
  if (storage == kF32) {
    auto* p = reinterpret_cast<float*>(to) + first;
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<float>(from[i]);
  } else if (storage == kBF16) {
    auto* p = reinterpret_cast<uint16_t*>(to) + first;
    for (int64_t i = 0; i < count; ++i) p[i] = to_bf16(static_cast<float>(from[i]));
  } else if (storage == kF16) {
    auto* p = reinterpret_cast<uint16_t*>(to) + first;
    for (int64_t i = 0; i < count; ++i) p[i] = to_f16(static_cast<float>(from[i]));
  }
}

}  // namespace
