// The linear recurrence on a GPU, h_t = a_t h_{t-1} + b_t, real or complex; or its gradient
//
//   d_b[t] = d_hs[t] + a[t+1] d_b[t+1]        d_a[t] = d_b[t] h[t-1]
//
// The rows and channels of a step lie side by side, as columns, and a block runs COLUMNS of them
// through all steps: blocks exchange nothing. A thread has a strip of STEPS steps of one column, a
// block STRIPS strips one after the other: a tile of time. It reads its strip once, into registers,
// and while a tile is run the next one is read. First a strip runs from zero: the product of its
// factors and where it ends make it one step of a shorter recurrence, which every thread runs from
// what the tile before left. That gives the state before the strip, from which it runs again. So
// states alone are multiplied by products of factors, never one such product by another.
//
// What is compiled with this file: the constants in capitals, which `source.py` writes before it, of
// an array its place in a call, -1 where there is none; and three types, of the arithmetic (`Total`),
// of factors and of what is added.

// As `device.cu` has the others.
struct Float64 {
  typedef double Bits;
  static __device__ double wide(double v) { return v; }
  static __device__ double narrow(double v) { return v; }
};
// (the types)
typedef Total::Bits Real;

// PARTS numbers, two of which are a complex one; read and written at once.
template <class Bits>
struct alignas(PARTS * sizeof(Bits)) Parts {
  Bits part[PARTS];
};
typedef Parts<Real> Number;

template <class Type>
__device__ __forceinline__ Number wide(const Parts<typename Type::Bits>& from) {
  Number to;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) to.part[i] = Type::wide(from.part[i]);
  return to;
}

template <class Type>
__device__ __forceinline__ Parts<typename Type::Bits> narrow(const Number& from) {
  Parts<typename Type::Bits> to;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) to.part[i] = Type::narrow(from.part[i]);
  return to;
}

__device__ __forceinline__ Number number(Real real) {
  Number n = {};
  n.part[0] = real;
  return n;
}
__device__ __forceinline__ bool is_zero(const Number& n) {
  return n.part[0] == 0 && n.part[PARTS - 1] == 0;
}

__device__ __forceinline__ Number plus(const Number& a, const Number& b) {
  Number sum;
#pragma unroll
  for (int i = 0; i < PARTS; ++i) sum.part[i] = a.part[i] + b.part[i];
  return sum;
}

// a b + c
__device__ __forceinline__ Number times_plus(const Number& a, const Number& b, const Number& c) {
  Number out;
  if constexpr (PARTS == 1) {
    out.part[0] = a.part[0] * b.part[0] + c.part[0];
  } else {
    out.part[0] = a.part[0] * b.part[0] + (c.part[0] - a.part[1] * b.part[1]);
    out.part[1] = a.part[0] * b.part[1] + (c.part[1] + a.part[1] * b.part[0]);
  }
  return out;
}
__device__ __forceinline__ Number times(const Number& a, const Number& b) {
  return times_plus(a, b, Number{});
}

constexpr int STRIPS = THREADS / COLUMNS, TILE = STRIPS * STEPS;
constexpr bool BACKWARD = D_H0 >= 0;
constexpr bool WANTS_STATES = D_A >= 0;  // backward
constexpr int INPUT = BACKWARD ? D_HS : B;  // what is added at each step

// A column of a member, as a thread sees it. Steps are counted as they are run.
struct Column {
  const Args& args;
  int member, steps;  // no step, if there is no such column
  long long index, row, columns;

  __device__ Column(const Args& args, int group, int lane)
      : args(args), member(group / args.tiles), columns((long long)args.rows * WIDTH) {
    index = (long long)(group % args.tiles) * COLUMNS + lane;
    row = index / WIDTH;
    steps = index < columns ? args.steps : 0;
  }

  __device__ __forceinline__ long long time(int k) const {
    return REVERSE != BACKWARD ? args.steps - 1 - k : k;
  }
  // Number `at` of an array.
  template <class Type>
  __device__ __forceinline__ Parts<typename Type::Bits>& at(int array, long long at) const {
    typedef Parts<typename Type::Bits> Stored;
    return reinterpret_cast<Stored*>(args.array[array] + member * args.member[array])[at];
  }
  template <class Type>
  __device__ __forceinline__ Parts<typename Type::Bits>& at_step(int array, int k) const {
    return at<Type>(array, time(k) * columns + index);
  }
  __device__ __forceinline__ bool flag(int array, int k) const {
    const long long at = member * args.member[array] + time(k) * args.rows + row;
    return args.array[array][at] != 0;
  }
};

// What a thread reads of its strip, which begins at step k.
struct Strip {
  Parts<Factor::Bits> factor[STEPS];
  Parts<Added::Bits> input[STEPS];
  Parts<Total::Bits> before[STEPS];  // backward: the state before a step,
  Parts<Added::Bits> hs[STEPS];      // or the output at the step before, in its place
  bool masked[STEPS], cut[STEPS];
  int there;  // so many steps

  __device__ __forceinline__ void read(const Column& column, int k) {
    there = column.steps - k;
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      if (i >= there) continue;
      if constexpr (A >= 0) factor[i] = column.at_step<Factor>(A, k + i);
      if constexpr (INPUT >= 0) input[i] = column.at_step<Added>(INPUT, k + i);
      if constexpr (MASK >= 0) masked[i] = !column.flag(MASK, k + i);
      if constexpr (STARTS >= 0) cut[i] = column.flag(STARTS, k + i);
      if constexpr (BACKWARD && WANTS_STATES && BEFORE >= 0)
        before[i] = column.at_step<Total>(BEFORE, k + i);
      if constexpr (BACKWARD && WANTS_STATES && BEFORE < 0)  // the step run next was before it
        if (i + 1 < there) hs[i] = column.at_step<Added>(HS, k + i + 1);
    }
  }

  __device__ __forceinline__ bool real(int i) const {
    return i < there && !(MASK >= 0 && masked[i]);
  }
  __device__ __forceinline__ bool start(int i) const {
    return STARTS >= 0 && i < there && cut[i];
  }
  __device__ __forceinline__ Number a(int i, const Number& constant) const {
    return A >= 0 ? wide<Factor>(factor[i]) : constant;
  }
  __device__ __forceinline__ Number added(int i) const {
    return INPUT >= 0 ? wide<Added>(input[i]) : Number{};
  }
  __device__ __forceinline__ Number state(int i, const Number& initial) const {
    if constexpr (BEFORE >= 0) return wide<Total>(before[i]);
    else return i + 1 < there ? wide<Added>(hs[i]) : initial;
  }
};

// What a strip does to the state before it: nothing; end + product state; or end, whatever it was.
enum Kind : unsigned char { KEEPS, MULTIPLIES, ENDS };

struct Shared {
  Number product[THREADS], end[THREADS];
  Kind kind[THREADS];
};
static_assert(2 * sizeof(Shared) <= SHARED, "two tiles, one after the other");

extern "C" __global__ void __launch_bounds__(THREADS, 2) run(const __grid_constant__ Args args) {
  SHARED_MEMORY(memory);
  Shared* const tiles = reinterpret_cast<Shared*>(memory);
  const int thread = threadIdx.x, lane = thread % COLUMNS, strip = thread / COLUMNS;
  const Column column(args, args.first + blockIdx.x, lane);
  const bool there = column.steps > 0;

  Number constant = {}, initial = {}, carried = {};
  if (CONSTANT >= 0 && there)
    constant = wide<Factor>(column.at<Factor>(CONSTANT, column.index % WIDTH));
  if (H0 >= 0 && there) initial = wide<Total>(column.at<Total>(H0, column.index));
  if (!BACKWARD) carried = initial;
  if (D_FINAL >= 0 && there) carried = wide<Total>(column.at<Total>(D_FINAL, column.index));
  Number total = {};  // backward, over all steps: the gradient of a constant factor

  Strip next;
  next.read(column, strip * STEPS);
  for (int begin = 0; begin < args.steps; begin += TILE) {
    const int k = begin + strip * STEPS;
    const Strip now = next;
    next.read(column, k + TILE);

    // From zero.
    Number product = number(1), end = {};
    Kind kind = KEEPS;
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      if (!BACKWARD && now.start(i)) product = end = Number{}, kind = ENDS;
      if (now.real(i)) {
        const Number a = now.a(i, constant), added = now.added(i);
        end = BACKWARD ? times(a, plus(end, added)) : times_plus(a, end, added);
        product = times(a, product);
        if (kind == KEEPS) kind = MULTIPLIES;
      }
      if (BACKWARD && now.start(i)) product = end = Number{}, kind = ENDS;
    }
    Shared& tile = tiles[begin / TILE % 2];
    tile.product[thread] = product, tile.end[thread] = end, tile.kind[thread] = kind;
    __syncthreads();  // the other tile has been read, too

    // From strip to strip, some of them read together.
    Number state = {};
    constexpr int FEW = STRIPS < 8 ? STRIPS : 8;
    for (int first = 0; first < STRIPS; first += FEW) {
      Number ends[FEW], products[FEW];
      Kind kinds[FEW];
#pragma unroll
      for (int s = 0; s < FEW; ++s) {
        const int at = (first + s) * COLUMNS + lane;
        ends[s] = tile.end[at], products[s] = tile.product[at], kinds[s] = tile.kind[at];
      }
#pragma unroll
      for (int s = 0; s < FEW; ++s) {
        if (first + s == strip) state = carried;
        // A product may overflow where the state, zero so far, does not.
        const Number moved = times_plus(products[s], carried, ends[s]);
        const bool whole = kinds[s] == ENDS || is_zero(carried);
        carried = kinds[s] == KEEPS ? carried : whole ? ends[s] : moved;
      }
    }

    // Again.
    Number sum = {};
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      if (i >= now.there) continue;
      const bool real = now.real(i), start = now.start(i);
      if constexpr (!BACKWARD) {
        if (start) state = Number{};
        if constexpr (BEFORE >= 0) column.at_step<Total>(BEFORE, k + i) = narrow<Total>(state);
        if (real) state = times_plus(now.a(i, constant), state, now.added(i));
        if constexpr (HS >= 0)
          column.at_step<Added>(HS, k + i) = narrow<Added>(real ? state : Number{});
      } else {
        const Number d = plus(state, now.added(i));
        if constexpr (D_B >= 0)
          column.at_step<Added>(D_B, k + i) = narrow<Added>(real ? d : Number{});
        if constexpr (WANTS_STATES) {
          const Number d_a = real && !start ? times(d, now.state(i, initial)) : Number{};
          if constexpr (A >= 0) column.at_step<Factor>(D_A, k + i) = narrow<Factor>(d_a);
          else sum = plus(sum, d_a);
        }
        if (real) state = times(now.a(i, constant), d);
        if (start) state = Number{};
      }
    }
    total = plus(total, sum);  // sums of sums: rounding grows with T over a tile, and not with T
  }

  constexpr int LAST = BACKWARD ? D_H0 : FINAL;
  if (there && strip == 0) column.at<Total>(LAST, column.index) = narrow<Total>(carried);
  if constexpr (WANTS_STATES && A < 0) {
    __syncthreads();  // nobody reads a tile any more
    tiles->end[thread] = total;
    __syncthreads();
    for (int s = 1; s < STRIPS; ++s) total = plus(total, tiles->end[s * COLUMNS + lane]);
    if (there && strip == 0) column.at<Total>(D_A, column.index) = narrow<Total>(total);
  }
}
