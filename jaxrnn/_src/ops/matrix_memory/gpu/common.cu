// What both kernels of the matrix memory have: a head's steps.

#define INFINITE __uint_as_float(0x7f800000)
#define NOT_A_NUMBER __uint_as_float(0x7fffffff)

// A head of a row, and a slice of its memory's columns. Steps are counted as the memory runs them.
struct Head {
  const Args& args;
  int member, index, row, slice;

  __device__ Head(const Args& args, int group, int slices)
      : args(args), member(group / args.tiles) {
    const int tile = group % args.tiles;
    index = tile / slices, slice = tile % slices, row = index / HEADS;
  }

  __device__ __forceinline__ int chunks() const { return (args.steps + CHUNK - 1) / CHUNK; }
  __device__ __forceinline__ long long heads() const { return (long long)args.rows * HEADS; }
  // What is there at a step, counted over all heads.
  __device__ __forceinline__ long long at(int step) const {
    return (REVERSE ? args.steps - 1 - step : step) * heads() + index;
  }
  __device__ __forceinline__ long long at_chunk(int chunk) const {
    return chunk * heads() + index;
  }
  template <class Type>
  __device__ __forceinline__ Type* of(int array) const {
    return reinterpret_cast<Type*>(args.array[array] + member * args.member[array]);
  }
  __device__ __forceinline__ bool flag(int array, int step) const {
    return of<unsigned char>(array)[at(step) / HEADS] != 0;
  }
  __device__ __forceinline__ bool real(int step) const {
    return step < args.steps && (MASK < 0 || flag(MASK, step));
  }
  __device__ __forceinline__ bool start(int step) const {
    return STARTS >= 0 && step < args.steps && flag(STARTS, step);
  }
};

// The larger one, or NaN if the first is.
__device__ __forceinline__ float larger(float kept, float written) {
  return kept > written || kept != kept ? kept : written;
}
