// Each block of a group has some units, and blocks exchange what they multiply through the L2 cache.
//
// Every step has a place of its own in device memory, the exchange, which was filled with EMPTY
// before the launch. Who needs a word reads it until it is not empty: the data are their own flag,
// there is no barrier between blocks, and a step costs one trip through the cache. Where so many
// places are too many, there are RING of them. Who publishes a step empties its own word half a ring
// ahead. By then all blocks have read what that word held: each has since published what it computed
// from it.
//
// No wait is endless. A thread that has polled MOST_POLLS times in vain raises a flag before the
// exchange and tells the host; whoever waits looks at the flag now and then. From then on nobody
// waits: all blocks run to their end with whatever they find, and write NaN over all they made.
//
// What the warps have summed is added up in a block (`block.cu`), or in a cluster of blocks that
// divide K (`cluster.cu`).

constexpr u32 EMPTY = 0xffffffff;
constexpr int FLAG = 128;  // bytes before the exchange: a cache line for the flag
constexpr u32 POLLS_BETWEEN_LOOKS = 64;  // at the flag; MOST_POLLS is a multiple
constexpr int AHEAD = 2;  // steps: how long before it is read an array is fetched
static_assert(RING % 4 == 0, "a ring has quarters");
constexpr int ROW_TILES = (TILE + 15) / 16;
constexpr int EACH = (TILE * UNITS + THREADS - 1) / THREADS;  // units of a thread
constexpr bool EARLY = true;  // whether what needs no cotangent is done before the wait

// The K of the products, and their columns: those for a block's own units, and all.
#ifdef FORWARD
constexpr int K = PADDED, OWN_COLUMNS = GATES * UNITS;
#else
constexpr int K = GATES * PADDED, OWN_COLUMNS = UNITS;
#endif
constexpr int COLUMNS = CLUSTER * OWN_COLUMNS;
constexpr int PIECES = K / PIECE, COLUMN_TILES = COLUMNS / 8;
constexpr int SHARES = CLUSTER * WARPS;  // warps that divide K
constexpr int MINE = (PIECES + SHARES - 1) / SHARES;  // pieces of a warp
constexpr int HELD = MINE * COLUMN_TILES * 4 <= MOST_HELD ? MINE : MOST_HELD / (COLUMN_TILES * 4);
constexpr int LEFT = MINE - HELD;  // in shared memory
constexpr int AT_ONCE = MINE < 8 / ROW_TILES ? MINE : 8 / ROW_TILES;  // pieces read together
constexpr int ONE_FIRST = 4;  // of so many words, one is waited for before the others
constexpr int WORKING = PIECES < WARPS ? PIECES : WARPS;  // warps that may have any
constexpr int STRIDE = COLUMNS + (40 - COLUMNS % 32) % 32;  // of a row of sums: 8 banks further

__device__ __forceinline__ bool empty(uint4 v) {
  return v.x == EMPTY || v.y == EMPTY || v.z == EMPTY || v.w == EMPTY;
}

__device__ __forceinline__ u32 full(u32 word) { return word == EMPTY ? NOT_A_NUMBER : word; }

// A number into the exchange, by all threads of a warp; neighbours have neighbouring units. In a
// ring, a later place of the same number becomes empty.
__device__ __forceinline__ void give(bool there, char* to, float value, char* later) {
#if defined(PRODUCT_FLOAT32)
#ifdef PRECISE
  const u32 word = __float_as_uint(value);
#else
  const u32 word = tf32(value);
#endif
  if (there) poke(to, full(word));
  if (RING && there) poke(later, EMPTY);
#else
  const float next = __shfl_down_sync(0xffffffff, value, 1);
#ifdef PRODUCT_BFLOAT16
  const u32 word = bfloat16s(value, next);
#else
  const u32 word = float16s(value, next);
#endif
  if (there && threadIdx.x % 2 == 0) poke(to, full(word));
  if (RING && there && threadIdx.x % 2 == 0) poke(later, EMPTY);
#endif
}

// How long a thread still waits for a step's words.
struct Patience {
  char *flag, *host;
  u32 polls = 0;  // and not time, in which another process may have had the GPU

  // After a poll in vain: whether to poll again.
  __device__ __forceinline__ bool again() {
    if (polls == MOST_POLLS) return false;
    if (++polls % POLLS_BETWEEN_LOOKS != 0) return true;
    const bool raised = peek(flag).x != EMPTY;
    if (polls < MOST_POLLS && !raised) return true;
    if (!raised) {
      tell(host, 1);
      poke(flag, 0);
    }
    __threadfence();  // before what it publishes now: who reads that, finds the flag
    polls = MOST_POLLS;
    return false;
  }
};

// The recurrent weights of a block's units: of each warp, its pieces of K.
struct Weights {
  uint4 held[HELD ? HELD : 1][COLUMN_TILES];
  uint4* left;  // [LEFT, COLUMN_TILES, 32]

  // `at(k, column)` gives the bits of a weight.
  template <class At>
  __device__ __forceinline__ void load(int share, int lane, At at) {
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
      const int k = (i * SHARES + share) * PIECE + lane % 4 * (PIECE / 4);
#pragma unroll
      for (int n = 0; n < COLUMN_TILES; ++n) {
        const int column = n * 8 + lane / 4;
        u32 word[4];
        for (int j = 0; j < 4; ++j) {
          if (Product::SIZE == 4) {
            word[j] = at(k + j, column);
          } else {
            word[j] = at(k + 2 * j, column) | at(k + 2 * j + 1, column) << 16;
          }
        }
        const uint4 all = make_uint4(word[0], word[1], word[2], word[3]);
        if (i < HELD) {
          held[i][n] = all;
        } else {
          left[((i - HELD) * COLUMN_TILES + n) * 32 + lane] = all;
        }
      }
      __syncwarp();  // else the compiler loads all at once, and spills what is held
    }
  }

  __device__ __forceinline__ uint4 at(int i, int n, int lane) const {
    return i < HELD ? held[i < HELD ? i : 0][n]
                    : left[((i - HELD) * COLUMN_TILES + n) * 32 + lane];
  }
};

// A warp's part of the products of one step: waits for what it needs of the exchange, and puts its
// sums down in `sums`, [WARPS, 16 * ROW_TILES, STRIDE].
__device__ __forceinline__ void multiply(const Weights& weights, const char* from, int count,
                                         float* sums, int share, int lane, Patience patience) {
  float c[ROW_TILES][COLUMN_TILES][4];
#pragma unroll
  for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] = 0;
  from += (share * TILE + lane / 4) * 64 + lane % 4 * 16;
#pragma unroll
  for (int first = 0; first < MINE; first += AT_ONCE) {
    uint4 a[AT_ONCE][ROW_TILES][2];
    auto place = [&](int j, int m, int half) {
      return from + ((first + j) * SHARES * TILE + m * 16 + half * 8) * 64;
    };
    auto there = [&](int j, int m, int half) {
      return first + j < MINE && (first + j) * SHARES + share < PIECES &&
             m * 16 + half * 8 + lane / 4 < count;
    };
    // Too many words asked for in vain would hold up those that are there.
    if (AT_ONCE * ROW_TILES >= ONE_FIRST && there(0, 0, 0))
      while (empty(peek(place(0, 0, 0))) && patience.again()) {
      }
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j)
#pragma unroll
      for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          a[j][m][half] = there(j, m, half) ? peek(place(j, m, half)) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
#pragma unroll
      for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (there(j, m, half))
            while (empty(a[j][m][half]) && patience.again())
              a[j][m][half] = peek(place(j, m, half));
      __syncwarp();
      if (first + j < MINE && (first + j) * SHARES + share < PIECES) {
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; ++n) {
          const uint4 b = weights.at(first + j, n, lane);
#pragma unroll
          for (int m = 0; m < ROW_TILES; ++m) multiply_add(c[m][n], a[j][m][0], a[j][m][1], b);
        }
      }
    }
  }
  const int warp = share % WARPS;
  if (warp >= WORKING) return;
  sums += (warp * 16 * ROW_TILES + lane / 4) * STRIDE + lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; ++n) {
      float* to = sums + m * 16 * STRIDE + n * 8;
      *reinterpret_cast<float2*>(to) = make_float2(c[m][n][0], c[m][n][1]);
      *reinterpret_cast<float2*>(to + 8 * STRIDE) = make_float2(c[m][n][2], c[m][n][3]);
    }
}

// What all warps found at a place of their sums: a number, or several.
template <class Numbers>
__device__ __forceinline__ Numbers total(const float* sums, int place) {
  Numbers part[WORKING];
#pragma unroll
  for (int w = 0; w < WORKING; ++w)
    part[w] = *reinterpret_cast<const Numbers*>(sums + w * 16 * ROW_TILES * STRIDE + place);
#pragma unroll
  for (int by = 1; by < WORKING; by *= 2)
#pragma unroll
    for (int w = 0; w + by < WORKING; w += 2 * by) part[w] = part[w] + part[w + by];
  return part[0];
}

// The row of a tile that a thread has. A warp that has two rows of 16 units takes rows two apart,
// whose sums lie in different banks.
__device__ __forceinline__ int row_of(int place) {
  const int row = place / UNITS;
  return UNITS == 16 ? (row & ~3) | (row & 1) << 1 | (row >> 1 & 1) : row;
}

// (the sums)

struct Products {
  Weights weights;
  Sums sums;
  char *flag, *exchange;
  long long a_step;  // bytes of the exchange
  int first, count, rank, warp, lane;  // rank: of a block in its cluster
  int summed[EACH];   // of each unit, where its sums are
  char* words[EACH];  // and where it is published
  Patience patience;

  __device__ __forceinline__ Products(const Args& args, uint4* shared, int group, int first,
                                      int count)
      : sums(shared + WARPS * LEFT * COLUMN_TILES * 32, first / UNITS % CLUSTER),
        flag(args.array[EXCHANGE]), first(first), count(count), rank(first / UNITS % CLUSTER),
        warp(threadIdx.x / 32), lane(threadIdx.x % 32), patience{flag, args.host} {
    // Of a step, this group's part: [PIECES, TILE, 64 bytes]. What a warp reads at once lies
    // together.
    a_step = static_cast<long long>(args.groups) * PIECES * TILE * 64;
    exchange = flag + FLAG + static_cast<long long>(group) * PIECES * TILE * 64;
    weights.left = shared + warp * LEFT * COLUMN_TILES * 32;
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      summed[e] = Sums::place(row(e), column(e));
      const int k = first + column(e);
      words[e] = exchange + (k / PIECE * TILE + row(e)) * 64 + k % PIECE * Product::SIZE;
      hold(summed[e]);
      hold(words[e]);
    }
  }

  // Where the e-th unit of a thread is, in the tile and in the block.
  __device__ __forceinline__ int row(int e) const { return row_of(e * THREADS + threadIdx.x); }
  __device__ __forceinline__ int column(int e) const { return (e * THREADS + threadIdx.x) % UNITS; }

  // `at(from, to, gate)` gives the bits of a weight.
  template <class At>
  __device__ __forceinline__ void load(At at) {
    weights.load(rank * WARPS + warp, lane, [&](int k, int column) {
      const int unit = first + (column / OWN_COLUMNS - rank) * UNITS + column % UNITS;
#ifdef FORWARD
      return at(k, unit, column / UNITS % GATES);
#else
      return at(unit, k % PADDED, k / PADDED);
#endif
    });
  }

  // Where a step is in the exchange.
  __device__ __forceinline__ long long step(int s) const { return (RING ? s % RING : s) * a_step; }

  // Of a unit, what step s multiplies.
  __device__ __forceinline__ void publish(int s, int e, const Unit& unit, int gate, float value) {
    char* word = words[e] + gate * (PADDED / PIECE) * TILE * 64;
    give(unit.there, word + step(s), value, word + step(s + RING / 2));
  }

  __device__ __forceinline__ void multiply(int s) {
    // What was emptied half a ring ago is so for everybody before anybody gets there: who gave it
    // and who will read it have each been here since, with words between them.
    if (RING && s % (RING / 4) == 0) __threadfence();
    __syncthreads();  // the sums have been read
    ::multiply(weights, exchange + step(s), count, sums.parts, rank * WARPS + warp, lane, patience);
    sums.gather(s, patience);
  }

  __device__ __forceinline__ float sum(int e, const Unit&, int gate) const {
    return sums.at(summed[e] + gate * UNITS);
  }

  // At the end: whether somebody gave up, so that what this thread found may mean nothing.
  __device__ __forceinline__ bool given_up() const {
    __threadfence();  // after all that this block has read of the exchange
    sums.leave();
    return peek(flag).x != EMPTY;
  }
};
