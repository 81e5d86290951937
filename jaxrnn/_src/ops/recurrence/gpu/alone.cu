// One block has all units of a head for a tile of rows: blocks exchange nothing. The weights are
// the left factor, and lie in registers. A warp has 16 units with all of their gates, so a thread
// has the sums of its units where it needs them. What a step multiplies, h or the gates' gradients,
// lies in shared memory, twice: a step reads one copy and writes the other, with one barrier.

constexpr int ROW_TILES = (TILE + 7) / 8, ROWS = 8 * ROW_TILES;
constexpr int EACH = 4 * ROW_TILES;  // units of a thread
constexpr int AHEAD = 4;  // steps, which are short: how long before it is read an array is fetched
constexpr bool EARLY = false;  // whether what needs no cotangent is done before the products
constexpr int PIECES = PADDED / PIECE;
#ifdef FORWARD
constexpr int FACTORS = 1;
#else
constexpr int FACTORS = GATES;
#endif
constexpr int COPY = FACTORS * PIECES * ROWS * 64;  // bytes

static_assert(UNITS == PADDED && UNITS == 16 * WARPS && BLOCKS == 1, "a warp has 16 units");

// The order of K: two units of a thread are neighbours, and one word.
constexpr __device__ int unit_of(int k) { return (k & ~15) | (k & 1) << 3 | (k >> 1 & 7); }

// Where a row's bytes of a piece lie: neither reads of 16 bytes, by rows, nor writes of 4 or 8, by
// units, collide in a bank.
__device__ __forceinline__ int offset(int row, int byte) {
  const int pair = row >> 1 & 3, place = row & 1 ? 4 + (pair ^ 1) : pair;
  return ((row & ~7) + place) * 64 + (byte ^ ((place & 2) << 4));
}

struct Products {
  uint4 weights[GATES][PIECES][2];
  float sums[GATES][ROW_TILES][4];
  float first[GATES];  // of two units
  char *from, *to;     // in a copy: what the lane reads, what it writes
  int warp, lane;

  __device__ __forceinline__ Products(const Args&, uint4* shared, int, int, int)
      : warp(threadIdx.x / 32), lane(threadIdx.x % 32) {
    from = reinterpret_cast<char*>(shared) + offset(lane / 4, lane % 4 * 16);
    const int k = warp * 16 + lane / 4 * 2;
    to = reinterpret_cast<char*>(shared) + k / PIECE * ROWS * 64;
  }

  __device__ __forceinline__ int row(int e) const { return e / 4 * 8 + lane % 4 * 2 + e / 2 % 2; }
  __device__ __forceinline__ int column(int e) const { return warp * 16 + lane / 4 + e % 2 * 8; }

  template <class At>
  __device__ __forceinline__ void load(At at) {
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
      for (int i = 0; i < PIECES; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          auto weight = [&](int j) {
            const int unit = unit_of(i * PIECE + lane % 4 * (PIECE / 4) + j);
            const int mine = warp * 16 + lane / 4 + half * 8;
#ifdef FORWARD
            return at(unit, mine, gate);
#else
            return at(mine, unit, gate);
#endif
          };
          u32 word[4];
#pragma unroll
          for (int j = 0; j < 4; ++j)
            word[j] = Product::SIZE == 4 ? weight(j) : weight(2 * j) | weight(2 * j + 1) << 16;
          weights[gate][i][half] = make_uint4(word[0], word[1], word[2], word[3]);
        }
  }

  // What step s multiplies, of a thread's units one after the other.
  __device__ __forceinline__ void publish(int s, int e, const Unit& unit, int gate, float value) {
    if (e % 2 == 0) {
      first[gate] = value;
      return;
    }
    if (!unit.there) return;
    const int byte = (warp * 16 + lane / 4 * 2) % PIECE * Product::SIZE;
    char* word = to + (s & 1) * COPY + gate * PIECES * ROWS * 64 + offset(unit.row, byte);
#if defined(PRODUCT_BFLOAT16)
    *reinterpret_cast<u32*>(word) = bfloat16s(first[gate], value);
#elif defined(PRODUCT_FLOAT16)
    *reinterpret_cast<u32*>(word) = float16s(first[gate], value);
#elif defined(PRECISE)
    *reinterpret_cast<float2*>(word) = make_float2(first[gate], value);
#else
    *reinterpret_cast<float2*>(word) =
        make_float2(__uint_as_float(tf32(first[gate])), __uint_as_float(tf32(value)));
#endif
  }

  __device__ __forceinline__ void multiply(int s) {
    __syncthreads();  // all is published, and the other copy has been read
    const char* copy = from + (s & 1) * COPY;
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
      for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[gate][m][i] = 0;
#pragma unroll
    for (int i = 0; i < PIECES; ++i)
#pragma unroll
      for (int m = 0; m < ROW_TILES; ++m) {
        uint4 right[FACTORS];
#pragma unroll
        for (int factor = 0; factor < FACTORS; ++factor)
          right[factor] = *reinterpret_cast<const uint4*>(
              copy + ((factor * PIECES + i) * ROWS + m * 8) * 64);
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate)
          multiply_add(sums[gate][m], weights[gate][i][0], weights[gate][i][1],
                       right[FACTORS == 1 ? 0 : gate]);
      }
  }

  // Of step s, what was multiplied for a unit; in the backward pass, for all gates together.
  __device__ __forceinline__ float sum(int e, const Unit&, int gate) const {
    const int i = e % 2 * 2 + e / 2 % 2;
#ifdef FORWARD
    return sums[gate][e / 4][i];
#else
    float all = 0;
#pragma unroll
    for (int g = 0; g < GATES; ++g) all += sums[g][e / 4][i];
    return all;
#endif
  }

  __device__ __forceinline__ bool given_up() const { return false; }
};
