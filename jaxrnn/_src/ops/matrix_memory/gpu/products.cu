// A matrix memory with scalar gates on a GPU, chunk by chunk, or one of the three runs of which its
// gradient is made. All four are one and the same:
//
//   S <- decay S + left right'      out = S' query
//
//   forward             S = C      left k      right i v    query q
//   d_q                 S = C'     left v      right i k    query d_y
//   d_k, from the end   S = G'     left d_y    right q      query v, and out is multiplied by i
//   d_v, from the end   S = G      left q      right d_y    query k, and out is multiplied by i
//
// where G is the gradient by C. Columns of S do not see each other: a block has a slice of them, and
// blocks exchange nothing. Within a tile of STEPS steps it is attention: query left' is multiplied by
// what is left at one step of another, and by right. S is handed from tile to tile; it is kept
// transposed, in registers, and rounded in shared memory, to be multiplied.
//
// What is compiled with this file: the constants in capitals, which `source.py` writes before it, of
// an array its place in a call, -1 where there is none; and the types of query, left and right.

#ifdef PRODUCT_FLOAT32
typedef u32 Bits;
#ifdef PRECISE
__device__ __forceinline__ Bits rounded(float v) { return __float_as_uint(v); }
#else
__device__ __forceinline__ Bits rounded(float v) { return tf32(v); }
#endif
#else
typedef Product::Bits Bits;
__device__ __forceinline__ Bits rounded(float v) { return Product::narrow(v); }
#endif

// (the types)

constexpr int THREADS = 32 * WARPS + 32;  // a warp more, for the gates
// Of vectors in arrays, which are filled up so that 16 bytes are read at once.
constexpr int LONG = (ROWS + 7) / 8 * 8, WIDE = (COLUMNS + 7) / 8 * 8;
constexpr int PARTS = CHUNK / STEPS, SLICES = (COLUMNS + SLICE - 1) / SLICE;
// Of S', a warp has 16 columns and TILES times 8 rows.
constexpr int DOWN = SLICE / 16, ACROSS = WARPS / DOWN;
constexpr int TILES = (LONG / 8 + ACROSS - 1) / ACROSS;
constexpr int PIECE = 64 / sizeof(Bits);  // of K in 64 bytes: two matrix instructions of 16 bits

template <class Number, int V>
struct alignas(V * sizeof(Number)) Numbers {
  Number number[V];
};

// A factor in shared memory: rows of K numbers. The order of K is free, so a lane reads 16 bytes at
// once. Eight lanes read two rows, which lie in different banks.
template <int K>
struct Matrix {
  static constexpr int PIECES = (K + PIECE - 1) / PIECE, STRIDE = (PIECES | 1) * 64;
  char* data;

  __device__ __forceinline__ Bits& at(int row, int k) const {
    return reinterpret_cast<Bits*>(data + row * STRIDE)[k];
  }
  template <int V>
  __device__ __forceinline__ void put(int row, int k, const Numbers<float, V>& v) const {
    Numbers<Bits, V> some;
#pragma unroll
    for (int i = 0; i < V; ++i) some.number[i] = rounded(v.number[i]);
    reinterpret_cast<Numbers<Bits, V>&>(at(row, k)) = some;
  }
  template <int V>
  __device__ __forceinline__ void put_transposed(int row, int k, const Numbers<float, V>& v) const {
#pragma unroll
    for (int i = 0; i < V; ++i) at(row + i, k) = rounded(v.number[i]);
  }
  __device__ __forceinline__ uint4 read(int row, int piece) const {
    const int lane = threadIdx.x % 32;
    return *reinterpret_cast<const uint4*>(data + (row + lane / 4) * STRIDE + piece * 64 +
                                           lane % 4 * 16);
  }
};

// Adds 16 rows of left times COUNT times 8 rows of right.
template <int COUNT, int K>
__device__ __forceinline__ void multiply(float (&sums)[COUNT][4], const Matrix<K>& left, int row,
                                         const Matrix<K>& right, int column) {
#pragma unroll
  for (int piece = 0; piece < Matrix<K>::PIECES; ++piece) {
    const uint4 upper = left.read(row, piece), lower = left.read(row + 8, piece);
#pragma unroll
    for (int j = 0; j < COUNT; ++j)
      multiply_add(sums[j], upper, lower, right.read(column + 8 * j, piece));
  }
}

// Where the sums of a lane are: `f(row, column, sum)`.
template <int COUNT, class F>
__device__ __forceinline__ void each(float (&sums)[COUNT][4], int row, int column, F f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < COUNT; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      f(row + lane / 4 + i / 2 * 8, column + 8 * j + lane % 4 * 2 + i % 2, sums[j][i]);
}

// The gates of a chunk. C is kept divided by exp(m); so is what a step leaves of another.
struct Gates {
  float log_f[CHUNK], log_i[CHUNK];
  float kept[CHUNK];  // the sum of log f since the tile or the stretch began
  float m[CHUNK];
  float before[PARTS];   // m before a tile
  // Of a tile: 0 is the one that was there before. A forget gate of 0 begins a stretch, too: the
  // difference of two -inf would be NaN. What is not finite stays, as 0 times it is NaN.
  int episode[CHUNK], stretch[CHUNK];
  bool real[CHUNK], start[CHUNK];
  float add[CHUNK];      // what is left of a step in the memory after the tile
  float read[CHUNK];     // what a step sees of the memory before the tile, if it is of its episode
  bool reads[CHUNK];
  float keep[PARTS];     // what is left of the memory itself, if the tile has one episode
  bool keeps[PARTS];

  // What is left at step t of what step s wrote.
  __device__ __forceinline__ float left(int t, int s) const {
    return expf(kept[t] - kept[s] + log_i[s] - m[t]);
  }

  // By one warp. Going forward m is that before the chunk, and then after it.
  __device__ void fill(const Head& head, int chunk, float& top) {
    const int lane = threadIdx.x % 32;
    for (int n = lane; n < CHUNK; n += 32) {
      const int step = chunk * CHUNK + n;
      real[n] = head.real(step), start[n] = head.start(step);
      log_f[n] = real[n] ? head.of<float>(LOG_F)[head.at(step)] : 0;
      log_i[n] = real[n] ? head.of<float>(LOG_I)[head.at(step)] : -INFINITE;
    }
    if (BACK) top = head.of<float>(SAVED_M)[head.at_chunk(chunk)];
    if (!BACK && SAVED_M >= 0 && head.slice == 0 && lane == 0)
      head.of<float>(SAVED_M)[head.at_chunk(chunk)] = top;
    __syncwarp();
    if (lane == 0) run(top);
    __syncwarp();
    top = m[CHUNK - 1];
    for (int n = lane; n < CHUNK; n += 32) {
      const int part = n / STEPS, last = part * STEPS + STEPS - 1;
      const bool first = episode[n] == 0, still = episode[n] == episode[last];
      const float begin = stretch[n] == 0 ? expf(kept[n] + before[part] - m[n]) : 0;
      const float end = stretch[n] == stretch[last] ? left(last, n) : 0;
      add[n] = BACK ? begin : end, read[n] = BACK ? end : begin, reads[n] = BACK ? still : first;
      if (n == last) keep[part] = begin, keeps[part] = first;
      const int step = chunk * CHUNK + n;
      if (MS >= 0 && head.slice == 0 && step < head.args.steps)
        head.of<float>(MS)[head.at(step)] = real[n] ? m[n] : 0;
    }
  }

  __device__ void run(float top) {
    float sum = 0;
    int starts = 0, closings = 0;
    for (int n = 0; n < CHUNK; ++n) {
      if (n % STEPS == 0) before[n / STEPS] = top, sum = 0, starts = closings = 0;
      if (start[n]) top = sum = 0, ++starts;
      if (real[n]) {
        if (STABILISED) top = larger(log_f[n] + top, log_i[n]);
        sum += log_f[n];
        if (log_f[n] == -INFINITE) sum = 0, ++closings;
      }
      kept[n] = sum, m[n] = top, episode[n] = starts, stretch[n] = starts + closings;
    }
  }
};

// In shared memory. Rows and columns that fill up a factor stay zero.
struct Shared {
  static constexpr int VECTORS = STEPS * Matrix<LONG>::STRIDE;
  char query[VECTORS], left[VECTORS];
  char left_of_step[ACROSS * TILES * 8 * Matrix<STEPS>::STRIDE];  // transposed
  char right[SLICE * Matrix<STEPS>::STRIDE];                      // transposed
  char seen[STEPS * Matrix<STEPS>::STRIDE];
  char memory[SLICE * Matrix<LONG>::STRIDE];  // transposed
  Gates gates[2];
  // Of a tile, and of the one after it: the steps whose left or right is not finite. Products must
  // not carry them to steps that do not see them.
  bool bad[2][STEPS], some[2];
  float sums[WARPS];
};
static_assert(sizeof(Shared) <= SHARED, "what `__init__.py` counts");

// Vectors of a tile, in an array [T, rows, HEADS, WIDTH]: COUNT numbers, `from` and after.
template <class Type, int WIDTH, int COUNT>
struct Vectors {
  typedef typename Type::Bits Stored;
  static constexpr int V = 16 / sizeof(Stored), GROUPS = (COUNT / V + 3) / 4 * 4;
  const Head& head;
  int array, from;

  __device__ __forceinline__ const Stored* at(int step) const {
    return head.of<Stored>(array) + head.at(step) * WIDTH + from;
  }

  // `put(n, column, numbers)`, zeros where a step is not real. Of 32 lanes four have the same step:
  // they read 64 bytes together, and what is written transposed collides in few banks.
  template <class Put>
  __device__ __forceinline__ void load(const bool* real, int begin, Put put) const {
#pragma unroll 4
    for (int i = threadIdx.x; i < STEPS * GROUPS; i += THREADS) {
      const int n = i / 4 % STEPS, column = (i / 4 / STEPS * 4 + i % 4) * V;
      if (column >= COUNT) continue;
      Numbers<Stored, V> stored = {};
      if (real[n] && from + column < WIDTH)
        stored = *reinterpret_cast<const Numbers<Stored, V>*>(at(begin + n) + column);
      Numbers<float, V> numbers;
#pragma unroll
      for (int v = 0; v < V; ++v) numbers.number[v] = Type::wide(stored.number[v]);
      put(n, column, numbers);
    }
  }

  // By one warp: into the L2 cache.
  __device__ __forceinline__ void ahead(int begin) const {
    constexpr int LINE = 128 / sizeof(Stored), LINES = (COUNT + LINE - 1) / LINE;
    for (int i = threadIdx.x % 32; i < STEPS * LINES; i += 32) {
      const int step = begin + i / LINES, column = i % LINES * LINE;
      if (step < head.args.steps && from + column < WIDTH) fetch(at(step) + column);
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 2) run(const __grid_constant__ Args args) {
  SHARED_MEMORY(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int thread = threadIdx.x, warp = thread / 32;
  for (int i = thread; i < SHARED / 16; i += THREADS) memory[i] = make_uint4(0, 0, 0, 0);
  const Matrix<LONG> query{shared.query}, left{shared.left}, of_memory{shared.memory};
  const Matrix<STEPS> left_of_step{shared.left_of_step}, right{shared.right}, seen{shared.seen};
  const Head head(args, args.first + blockIdx.x, SLICES);
  const int from = head.slice * SLICE;  // the first column
  const Vectors<Query, LONG, LONG> queries{head, QUERY, 0};
  const Vectors<Left, LONG, LONG> lefts{head, LEFT, 0};
  const Vectors<Right, WIDE, SLICE> rights{head, RIGHT, from};
  const int down = warp % DOWN * 16, across = warp / DOWN * TILES * 8;

  // Of a memory in an array, the numbers that the thread has.
  float state[TILES][4] = {};
  auto mine = [&](auto f) {
    if (warp < WARPS)
      each(state, down, across, [&](int column, int row, float& number) {
        if (row < ROWS && from + column < COLUMNS)
          f((long long)row * ROW_STEP + (from + column) * COLUMN_STEP, number);
      });
  };
  constexpr long long WHOLE = (long long)ROWS * COLUMNS;
  if (STATE >= 0) {
    const float* begin = head.of<float>(STATE) + head.index * WHOLE;
    mine([&](long long at, float& number) { number = begin[at]; });
  }
  __syncthreads();  // all is zero

  const int chunks = head.chunks();
  float m = BACK ? 0 : head.of<float>(M)[head.index];
  if (warp == WARPS && chunks > 0) shared.gates[0].fill(head, BACK ? chunks - 1 : 0, m);
  for (int done = 0; done < chunks * PARTS; ++done) {
    const int order = done / PARTS, chunk = BACK ? chunks - 1 - order : order;
    const int part = BACK ? PARTS - 1 - done % PARTS : done % PARTS, first = part * STEPS;
    const Gates& gates = shared.gates[order % 2];
    bool* const bad = shared.bad[done % 2];
    bool& some = shared.some[done % 2];
    if (!BACK && SAVED >= 0 && part == 0) {
      float* saved = head.of<float>(SAVED) + head.at_chunk(chunk) * WHOLE;
      mine([&](long long at, float& number) { saved[at] = number; });
    }
    __syncthreads();  // what the tile before had has been read

    auto finite = [&](int n, auto& numbers) {
      for (float& number : numbers.number)
        if (!(fabsf(number) < INFINITE)) number = 0, bad[n] = some = true;
    };
    const bool* const real = gates.real + first;
    const int begin = chunk * CHUNK + first;
    queries.load(real, begin, [&](int n, int row, auto& v) { query.put(n, row, v); });
    lefts.load(real, begin, [&](int n, int row, auto& v) {
      finite(n, v);
      left.put(n, row, v);
      for (float& number : v.number) number *= gates.add[first + n];
      left_of_step.put_transposed(row, n, v);
    });
    rights.load(real, begin, [&](int n, int column, auto& v) {
      finite(n, v);
      right.put_transposed(column, n, v);
    });
    if (warp < WARPS)
      each(state, down, across, [&](int column, int row, float number) {
        if (row < ROWS) of_memory.at(column, row) = rounded(number);
      });
    __syncthreads();

    // Whether what step s of the tile wrote reaches step t; backward, the other way round.
    auto reaches = [&](int s, int t, const int* numbers) {
      return (BACK ? s >= t : s <= t) && numbers[first + s] == numbers[first + t];
    };
    constexpr int GROUP = STEPS / 8 < 4 ? STEPS / 8 : 4, GROUPS = STEPS / 8 / GROUP;
    for (int job = warp; warp < WARPS && job < STEPS / 16 * GROUPS; job += WARPS) {
      const int t0 = job / GROUPS * 16, s0 = job % GROUPS * GROUP * 8;
      if (BACK ? s0 + GROUP * 8 <= t0 : s0 >= t0 + 16) continue;  // it stays zero
      float sums[GROUP][4] = {};
      multiply(sums, query, t0, left, s0);
      each(sums, t0, s0, [&](int t, int s, float sum) {
        const float left = BACK ? gates.left(first + s, first + t) : gates.left(first + t, first + s);
        seen.at(t, s) = rounded(reaches(s, t, gates.stretch) ? sum * left : 0);
      });
    }
    if (warp == WARPS) {
      for (int n = thread % 32; n < STEPS; n += 32) shared.bad[1 - done % 2][n] = false;
      shared.some[1 - done % 2] = false;
      const int next = begin + (BACK ? -STEPS : STEPS);
      if (next >= 0) queries.ahead(next), lefts.ahead(next), rights.ahead(next);
      if (done % PARTS == 0 && order + 1 < chunks)
        shared.gates[1 - order % 2].fill(head, BACK ? chunk - 1 : chunk + 1, m);
    }
    __syncthreads();

    constexpr int FEW = SLICE / 8 < 4 ? SLICE / 8 : 4, ASIDE = SLICE / 8 / FEW;
    for (int job = warp; warp < WARPS && job < STEPS / 16 * ASIDE; job += WARPS) {
      const int t0 = job / ASIDE * 16, c0 = job % ASIDE * FEW * 8;
      float sums[FEW][4] = {};
      multiply(sums, query, t0, of_memory, c0);
      each(sums, t0, c0, [&](int t, int, float& sum) {
        sum = gates.reads[first + t] ? gates.read[first + t] * sum : 0;
      });
      multiply(sums, seen, t0, right, c0);
      each(sums, t0, c0, [&](int t, int c, float sum) {
        const int step = begin + t;
        if (step >= args.steps || from + c >= WIDE) return;
        for (int s = 0; some && s < STEPS; ++s)
          if (bad[s] && reaches(s, t, gates.episode)) sum = NOT_A_NUMBER;
        head.of<float>(OUT)[head.at(step) * WIDE + from + c] = gates.real[first + t] ? sum : 0;
      });
    }
    if (warp < WARPS) {
      each(state, 0, 0, [&](int, int, float& number) {
        number = gates.keeps[part] ? gates.keep[part] * number : 0;
      });
      multiply(state, right, down, left_of_step, across);
      for (int s = 0; some && s < STEPS; ++s)
        if (bad[s] && reaches(s, BACK ? 0 : STEPS - 1, gates.episode) &&
            (!BACK || gates.episode[first + s] == 0))
          each(state, 0, 0, [&](int, int, float& number) { number = NOT_A_NUMBER; });
    }
    if (ANCHORS >= 0 && part == 0) {  // BACK: this memory times its gradient
      const float* saved = head.of<float>(SAVED) + head.at_chunk(chunk) * WHOLE;
      float sum = 0;
      mine([&](long long at, float& number) {
        if (number != 0) sum += number * saved[at];  // where an episode has ended, whatever it is
      });
      for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(0xffffffff, sum, by);
      if (thread % 32 == 0 && warp < WARPS) shared.sums[warp] = sum;
      __syncthreads();
      if (thread == 0) {
        float& all = head.of<float>(ANCHORS)[head.at_chunk(chunk) * SLICES + head.slice];
        all = 0;
        for (float one : shared.sums) all += one;
      }
    }
  }

  if (END >= 0) {
    float* end = head.of<float>(END) + head.index * WHOLE;
    mine([&](long long at, float& number) { end[at] = number; });
  }
  if (END_M >= 0 && head.slice == 0 && thread == 32 * WARPS)
    head.of<float>(END_M)[head.index] = m;
}
