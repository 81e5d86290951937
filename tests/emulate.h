// What CUDA has and C++ has not, for a kernel's source on a CPU: see emulate.cc.

#include <math.h>
#include <string.h>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define SHARED_MEMORY(name) uint4* name = emulated::shared()

struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float __uint_as_float(unsigned v) { float f; memcpy(&f, &v, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned v; memcpy(&v, &f, 4); return v; }
inline float __fdividef(float a, float b) { return a / b; }
inline int min(int a, int b) { return a < b ? a : b; }
struct Dim { unsigned x; };

namespace emulated {
// So many publishes from now, one is lost; below 0, of what is sent in a cluster; 0: none is.
extern long lost;
const char* launch(unsigned blocks, unsigned cluster, unsigned threads, unsigned bytes,
                   void (*run)(void*), void* args);
uint4* shared();
unsigned thread(), block();
enum Type { kFloat32, kBfloat16, kFloat16 };
void multiply_add(float* c, const unsigned* mine, Type type);
}  // namespace emulated

#define threadIdx (Dim{emulated::thread()})
#define blockIdx (Dim{emulated::block()})
void __syncthreads();
void __syncwarp();
float __shfl_down_sync(unsigned, float value, int by);
uint4 peek(const void* from);
void poke(void* to, unsigned word);
inline void tell(void* to, unsigned word) { memcpy(to, &word, 4); }
void __threadfence();
using Place = char*;  // in the shared memory of any block of a cluster: see cluster.cu
Place place_in(const void* mine, int rank);
void send(Place to, Place counter, float4 v);
void begin_counting(void* counter);
void expect(void* counter, int bytes);
bool arrived(void* counter, int round);
void meet_cluster();
unsigned bfloat16s(float low, float high);
unsigned float16s(float low, float high);
float from_float16(unsigned short bits);
unsigned tf32(float f);
float short_tanh(float value);
inline float short_logistic(float value) { return 1 / (1 + expf(-value)); }
inline void fetch(const void*) {}
inline void hold(int&) {}
inline void hold(char*&) {}

inline void multiply_add(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                         unsigned b0, unsigned b1) {
  const unsigned mine[] = {a0, a1, a2, a3, b0, b1};
#if defined(PRODUCT_BFLOAT16)
  emulated::multiply_add(c, mine, emulated::kBfloat16);
#elif defined(PRODUCT_FLOAT16)
  emulated::multiply_add(c, mine, emulated::kFloat16);
#else
  emulated::multiply_add(c, mine, emulated::kFloat32);
#endif
}
