// What a block's warps summed, added up for its units.

struct Sums {
  float* parts;  // of the warps: [WORKING, 16 * ROW_TILES, STRIDE]

  __device__ __forceinline__ Sums(void* shared, int) : parts(static_cast<float*>(shared)) {}

  // Where a unit's first sum is. Of a row that is not there, it is a sum that nobody uses: a
  // condition would make each sum wait for the one before.
  static __device__ __forceinline__ int place(int row, int column) {
    return min(row, 16 * ROW_TILES - 1) * STRIDE + column;
  }

  // Of step s, after all warps have put down their parts.
  __device__ __forceinline__ void gather(int, Patience) { __syncthreads(); }

  __device__ __forceinline__ float at(int place) const { return total<float>(parts, place); }

  // At the end.
  __device__ __forceinline__ void leave() const { __syncthreads(); }
};
