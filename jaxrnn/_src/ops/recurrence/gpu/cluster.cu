// What the warps of a cluster's blocks summed, added up for the units of this one.
//
// The blocks of a cluster divide K. Each multiplies its part by the weights of all their units, so
// it reads one CLUSTER-th of the exchange. What it found for a block's units it sends into that
// block's shared memory, which is nearer than the L2 cache, and adds up what all of them sent to it.
//
// A counter in shared memory knows how many bytes of a step have arrived. There are two copies of
// all this, which steps use in turn. Who sends for step s + 2 has had the sums of step s + 1, and
// whoever sent those had read its copy of step s.

#ifndef EMULATED
using Place = u32;  // in the shared memory of any block of the cluster

// The same place in another block.
__device__ __forceinline__ Place place_in(const void* mine, int rank) {
  u32 found;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(found) : "r"(static_cast<u32>(__cvta_generic_to_shared(mine))), "r"(rank));
  return found;
}

// 16 bytes to there, and to a counter of the same block that they have arrived.
__device__ __forceinline__ void send(Place to, Place counter, float4 v) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];"
      :: "r"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(counter) : "memory");
}

__device__ __forceinline__ void begin_counting(void* counter) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;"
               :: "r"(static_cast<u32>(__cvta_generic_to_shared(counter))) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// How many bytes a step sends here, said once a step.
__device__ __forceinline__ void expect(void* counter, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :: "r"(static_cast<u32>(__cvta_generic_to_shared(counter))), "r"(bytes) : "memory");
}

// Whether they are all here, of the counter's even or odd rounds. If not, it waits for up to half a
// microsecond.
__device__ __forceinline__ bool arrived(void* counter, int round) {
  u32 found;
  asm volatile(
      "{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2, 500; "
      "selp.u32 %0, 1, 0, p;}"
      : "=r"(found) : "r"(static_cast<u32>(__cvta_generic_to_shared(counter))), "r"(round)
      : "memory");
  return found;
}

// A barrier of all threads of the cluster.
__device__ __forceinline__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}
#endif

constexpr int SPREAD = OWN_COLUMNS + (40 - OWN_COLUMNS % 32) % 32;  // of a row, as in STRIDE
constexpr int COPY = CLUSTER * TILE * SPREAD;                       // numbers
constexpr int BYTES = CLUSTER * TILE * OWN_COLUMNS * 4;             // a block is sent in a step
constexpr int SENDS = TILE * COLUMNS / 4;                           // of a block, in a step
constexpr int EACH_SENDS = (SENDS + THREADS - 1) / THREADS;

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

struct Sums {
  float* parts;     // of this block's warps: [WORKING, 16 * ROW_TILES, STRIDE]
  float* received;  // two copies of [CLUSTER, TILE, SPREAD]
  unsigned long long* counters;  // of each copy
  int from[EACH_SENDS];          // of what a thread sends, where it is in the parts
  Place to[EACH_SENDS], counter[EACH_SENDS];
  const float* step;   // the copy of this step
  bool lost = false;   // whether this thread has waited in vain

  __device__ __forceinline__ Sums(void* shared, int rank)
      : parts(static_cast<float*>(shared)),
        received(parts + WORKING * 16 * ROW_TILES * STRIDE),
        counters(reinterpret_cast<unsigned long long*>(received + 2 * COPY)) {
#pragma unroll
    for (int i = 0; i < EACH_SENDS; ++i) {
      const int number = i * THREADS + threadIdx.x;
      const int row = number / (COLUMNS / 4), column = number % (COLUMNS / 4) * 4;
      const int theirs = column % OWN_COLUMNS, block = column / OWN_COLUMNS;
      from[i] = row * STRIDE + column;
      to[i] = place_in(received + (rank * TILE + row) * SPREAD + theirs, block);
      counter[i] = place_in(counters, block);
    }
    if (threadIdx.x == 0)
      for (int i = 0; i < 2; ++i) begin_counting(counters + i);
    meet_cluster();  // nobody sends to a block that does not count yet
  }

  // Where a unit's first sum is; see block.cu.
  static __device__ __forceinline__ int place(int row, int column) {
    return min(row, TILE - 1) * SPREAD + column;
  }

  // Of step s, after all warps have put down their parts. Who has waited in vain waits no more, and
  // sends nothing: those who miss it give up in turn.
  __device__ __forceinline__ void gather(int s, Patience patience) {
    __syncthreads();
    const int copy = s & 1;
    if (threadIdx.x == 0 && !lost) expect(counters + copy, BYTES);
#pragma unroll
    for (int i = 0; i < EACH_SENDS; ++i) {
      if (i * THREADS + threadIdx.x >= SENDS || lost) break;
      send(to[i] + copy * COPY * 4, counter[i] + copy * 8, total<float4>(parts, from[i]));
    }
    while (!lost && !arrived(counters + copy, s / 2 & 1)) lost = !patience.again();
    step = received + copy * COPY;
  }

  __device__ __forceinline__ float at(int place) const {
    float sum = step[place];
#pragma unroll
    for (int rank = 1; rank < CLUSTER; ++rank) sum += step[rank * TILE * SPREAD + place];
    return sum;
  }

  // At the end: nobody may leave to whom another block may still send.
  __device__ __forceinline__ void leave() const { meet_cluster(); }
};
