// The recurrence on a GPU: all steps in one launch, forward or backward.
//
// A group of blocks runs one tile of rows of one head. Each block has some of the head's units, or
// all of them: it holds their recurrent weights in registers and shared memory, and their states in
// registers. At each step it needs what all blocks of its group made of the step before: h going
// forward, the gates' gradients going backward.
//
// What is compiled with this file: the constants in capitals, which `source.py` writes before it;
// `update`, or `prepare` and `derivative`, an elementwise function as straight code; and `Products`,
// which multiplies and hands on what is multiplied: `exchange.cu` for blocks that exchange it, with
// `block.cu` or `cluster.cu`; `alone.cu` for a block that has all units.

constexpr u32 NOT_A_NUMBER = 0x7fffffff;

constexpr int THREADS = 32 * WARPS;
constexpr int HIDDEN = HEADS * WIDTH;
constexpr int PIECE = 64 / Product::SIZE;  // units of K in 64 bytes: two multiply_adds
constexpr int PADDED = (WIDTH + PIECE - 1) / PIECE * PIECE;
constexpr int SUMMED = GATES - APART, SLOTS = SUMMED + 2 * APART;

template <class Type>
__device__ float get(const char* p) {
  return Type::wide(*reinterpret_cast<const typename Type::Bits*>(p));
}
template <class Type>
__device__ void put(char* p, float v) {
  *reinterpret_cast<typename Type::Bits*>(p) = Type::narrow(v);
}

// A unit of a row.
struct Unit {
  int row, column;  // in the tile, and in the block
  int batch, hidden;  // among all rows, and all units
  bool there;  // whether the row is; of the units that fill up K, there are some
  bool has;    // whether the unit is, too

  // In an array [..., rows, parts * HIDDEN].
  __device__ long long place(long long step, int part, int parts, int rows) const {
    return (step * rows + batch) * parts * HIDDEN + part * HIDDEN + hidden;
  }

  template <class Type>
  __device__ float read(const char* array, long long step, int part, int parts, int rows) const {
    return has ? get<Type>(array + place(step, part, parts, rows) * Type::SIZE) : 0;
  }

  template <class Type>
  __device__ void fetch(const char* array, long long step, int part, int parts, int rows) const {
    if (has) ::fetch(array + place(step, part, parts, rows) * Type::SIZE);
  }

  template <class Type>
  __device__ void write(char* array, long long step, int part, int parts, int rows,
                        float value) const {
    if (has) put<Type>(array + place(step, part, parts, rows) * Type::SIZE, value);
  }
};

// Where packed gates are: the array, and the place in it; see `Packed` in packed.py.
constexpr __device__ int part_of(int slot) { return slot < SUMMED ? 0 : slot < GATES ? 1 : 2; }
constexpr __device__ int array_of(int slot) { return part_of(slot) - (SUMMED == 0); }
constexpr int KEPT_ARRAYS = (SUMMED > 0) + 2 * (APART > 0);
constexpr __device__ int gates_in_array(int i) { return SUMMED > 0 && i == 0 ? SUMMED : APART; }
constexpr __device__ int gates_in(int slot) { return slot < SUMMED ? SUMMED : APART; }
constexpr __device__ int place_of(int slot) {
  return slot < SUMMED ? slot : slot < GATES ? slot - SUMMED : slot - GATES;
}

// (the products)

extern "C" __global__ void __launch_bounds__(THREADS, 1) run(const __grid_constant__ Args args) {
  SHARED_MEMORY(shared);
  const int block = blockIdx.x % BLOCKS, group = args.first + blockIdx.x / BLOCKS;
  const int tile = group % args.tiles, head = group / args.tiles % HEADS;
  const int member = group / args.tiles / HEADS;
  const int first = block * UNITS, rows = args.rows, steps = args.steps;
  const int count = min(TILE, rows - tile * TILE);
  auto array = [&](int i) { return args.array[i] + (ENSEMBLE ? member * args.member[i] : 0); };
  auto is_set = [&](int i, int t, const Unit& unit) {
    return unit.there && array(i)[static_cast<long long>(t) * rows + unit.batch] != 0;
  };

  Products products(args, shared, group, first, count);
  Unit units[EACH];
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    Unit& unit = units[e];
    unit.row = products.row(e);
    unit.column = products.column(e);
    unit.batch = tile * TILE + unit.row;
    unit.hidden = head * WIDTH + first + unit.column;
    unit.there = unit.row < count && first + unit.column < PADDED;
    unit.has = unit.there && first + unit.column < WIDTH;
  }

  // NaN for this thread's units in an array [copies, rows, parts * HIDDEN].
  auto spoil = [&](auto type, int which, int copies, int parts) {
#pragma unroll 1
    for (int i = 0; i < copies * parts; ++i)
#pragma unroll
      for (int e = 0; e < EACH; ++e)
        units[e].write<decltype(type)>(array(which), i / parts, i % parts, parts, rows,
                                       __uint_as_float(NOT_A_NUMBER));
  };

  const char* r = array(R) + static_cast<long long>(head) * WIDTH * GATES * WIDTH * Product::SIZE;
  products.load([&](int from, int to, int gate) -> u32 {  // the bits of a weight
    if (from >= WIDTH || to >= WIDTH || gate >= GATES) return 0;
    const char* p = r + ((from * GATES + gate) * WIDTH + to) * Product::SIZE;
    if (Product::SIZE == 2) return *reinterpret_cast<const unsigned short*>(p);
#ifdef PRECISE
    return *reinterpret_cast<const u32*>(p);
#else
    return tf32(*reinterpret_cast<const float*>(p));
#endif
  });

  float unit_weights[EACH][UNIT_WEIGHTS + 1];
#pragma unroll
  for (int e = 0; e < EACH; ++e)
#pragma unroll
    for (int u = 0; u < UNIT_WEIGHTS; ++u)
      unit_weights[e][u] =
          units[e].has ? reinterpret_cast<float*>(array(UNIT + u))[units[e].hidden] : 0;

#ifdef FORWARD
  float state[EACH][STATES];
  auto put_back = [&](int e, int which) {
#pragma unroll
    for (int k = 0; k < STATES; ++k)
      state[e][k] = units[e].read<Float32>(array(which + k), 0, 0, 1, rows);
  };
  auto time = [&](int s) { return REVERSE ? steps - 1 - s : s; };
  auto starts = [&](int e, int s) {
    return STARTS >= 0 && s < steps && is_set(STARTS, time(s), units[e]);
  };
  // What step s begins with, for all blocks to see.
  auto begin = [&](int e, int s, bool start) {
    if (start) put_back(e, INITIAL);
    products.publish(s, e, units[e], 0, state[e][0]);
  };
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    put_back(e, STATE);
    begin(e, 0, starts(e, 0));
  }

  for (int s = 0; s < steps; ++s) {
    const int t = time(s);
    float x[EACH][GATES];
    bool real[EACH], start[EACH];
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      real[e] = MASK < 0 || is_set(MASK, t, units[e]);
      start[e] = starts(e, s + 1);
#pragma unroll
      for (int g = 0; g < GATES; ++g)
        x[e][g] = units[e].read<Float32>(array(GIVEN), t, g, GATES, rows);
#pragma unroll
      for (int g = 0; g < GATES; ++g)
        if (s + AHEAD < steps)
          units[e].fetch<Float32>(array(GIVEN), time(s + AHEAD), g, GATES, rows);
    }
    products.multiply(s);
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const Unit& unit = units[e];
      float in[STATES + SLOTS + UNIT_WEIGHTS], out[STATES];
#pragma unroll
      for (int g = 0; g < GATES; ++g) {
        const float sum = products.sum(e, unit, g);
        const int slot = STATES + SLOT[g];
        in[slot] = SLOT[g] < SUMMED ? x[e][g] + sum : x[e][g];
        if (SLOT[g] >= SUMMED) in[slot + APART] = sum;
      }
#pragma unroll
      for (int k = 0; k < STATES; ++k) in[k] = state[e][k];
#pragma unroll
      for (int u = 0; u < UNIT_WEIGHTS; ++u) in[STATES + SLOTS + u] = unit_weights[e][u];
      update(in, out);
#pragma unroll
      for (int k = 0; k < STATES; ++k)
        if (real[e] && unit.has) state[e][k] = out[k];
      float after[STATES];  // for those who want it: what is next may begin anew
#pragma unroll
      for (int k = 0; k < STATES; ++k) after[k] = state[e][k];
      if (s + 1 < steps) begin(e, s + 1, start[e]);
      if (YS >= 0) unit.write<Output>(array(YS), t, 0, 1, rows, real[e] ? out[0] : 0);
#pragma unroll
      for (int k = 0; k < STATES; ++k)
        if (IS_AFTER[k] >= 0)
          unit.write<Float32>(array(AFTER + IS_AFTER[k]), t, 0, 1, rows, after[k]);
      // What the backward will need.
#pragma unroll
      for (int slot = 0; slot < (KEPT_GATES >= 0 ? SLOTS : 0); ++slot)
        unit.write<Float32>(array(KEPT_GATES + array_of(slot)), t, place_of(slot), gates_in(slot),
                            rows, in[STATES + slot]);
#pragma unroll
      for (int k = FIRST_KEPT; k < (KEPT_STATES >= 0 ? STATES : 0); ++k)
        unit.write<Float32>(array(KEPT_STATES + k - FIRST_KEPT), t, 0, 1, rows, in[k]);
    }
  }
#pragma unroll
  for (int e = 0; e < EACH; ++e)
#pragma unroll
    for (int k = 0; k < STATES; ++k)
      units[e].write<Float32>(array(FINAL + k), 0, 0, 1, rows, state[e][k]);
  if (!products.given_up()) return;
  for (int k = 0; k < STATES; ++k) spoil(Float32(), FINAL + k, 1, 1);
  if (YS >= 0) spoil(Output(), YS, steps, 1);
  for (int k = 0; k < STATES; ++k)
    if (IS_AFTER[k] >= 0) spoil(Float32(), AFTER + IS_AFTER[k], steps, 1);
  for (int i = 0; i < (KEPT_GATES >= 0 ? KEPT_ARRAYS : 0); ++i)
    spoil(Float32(), KEPT_GATES + i, steps, gates_in_array(i));
  for (int k = FIRST_KEPT; k < (KEPT_STATES >= 0 ? STATES : 0); ++k)
    spoil(Float32(), KEPT_STATES + k - FIRST_KEPT, steps, 1);

#else  // backward
  auto time = [&](int s) { return REVERSE ? s : steps - 1 - s; };
  float d[EACH][STATES], d_initial[EACH][STATES], d_unit[EACH][UNIT_WEIGHTS + 1];
  bool real[EACH], start[EACH];  // at the step before
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
#pragma unroll
    for (int k = 0; k < STATES; ++k) {
      d[e][k] = units[e].read<Float32>(array(D_FINAL + k), 0, 0, 1, rows);
      d_initial[e][k] = 0;
    }
#pragma unroll
    for (int u = 0; u < UNIT_WEIGHTS; ++u) d_unit[e][u] = 0;
  }

  for (int s = 0; s <= steps; ++s) {
    const int t = time(s);
    float in[EACH][STATES + SLOTS + UNIT_WEIGHTS], kept[EACH][KEPT + 1], d_y[EACH];
    float d_after[EACH][STATES];
    bool real_now[EACH], start_now[EACH];
    if (s < steps) {
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        const Unit& unit = units[e];
        real_now[e] = MASK < 0 || is_set(MASK, t, unit);
        start_now[e] = STARTS >= 0 && is_set(STARTS, t, unit);
#pragma unroll
        for (int k = 0; k < STATES; ++k)
          in[e][k] =
              USED[k] < 0 ? 0 : unit.read<Float32>(array(BEFORE + USED[k]), t, 0, 1, rows);
#pragma unroll
        for (int slot = 0; slot < SLOTS; ++slot)
          in[e][STATES + slot] = unit.read<Float32>(array(GIVEN + array_of(slot)), t,
                                                    place_of(slot), gates_in(slot), rows);
#pragma unroll
        for (int u = 0; u < UNIT_WEIGHTS; ++u) in[e][STATES + SLOTS + u] = unit_weights[e][u];
        d_y[e] = D_YS < 0 ? 0 : unit.read<Output>(array(D_YS), t, 0, 1, rows);
#pragma unroll
        for (int k = 0; k < STATES; ++k)
          if (IS_AFTER[k] >= 0)
            d_after[e][k] = unit.read<Float32>(array(D_AFTER + IS_AFTER[k]), t, 0, 1, rows);
        if (s + AHEAD < steps) {
          const int later = time(s + AHEAD);
#pragma unroll
          for (int k = 0; k < STATES; ++k)
            if (USED[k] >= 0) unit.fetch<Float32>(array(BEFORE + USED[k]), later, 0, 1, rows);
#pragma unroll
          for (int slot = 0; slot < SLOTS; ++slot)
            unit.fetch<Float32>(array(GIVEN + array_of(slot)), later, place_of(slot),
                                gates_in(slot), rows);
          if (D_YS >= 0) unit.fetch<Output>(array(D_YS), later, 0, 1, rows);
#pragma unroll
          for (int k = 0; k < STATES; ++k)
            if (IS_AFTER[k] >= 0)
              unit.fetch<Float32>(array(D_AFTER + IS_AFTER[k]), later, 0, 1, rows);
        }
        if (EARLY) prepare(in[e], kept[e]);
      }
    }
    if (s > 0) {
      products.multiply(s - 1);
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        const float sum = products.sum(e, units[e], 0);
        if (real[e] && units[e].has) d[e][0] += sum;
#pragma unroll
        for (int k = 0; k < STATES; ++k)
          if (start[e]) {
            d_initial[e][k] += d[e][k];
            d[e][k] = 0;
          }
      }
    }
    if (s == steps) break;
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const Unit& unit = units[e];
      real[e] = real_now[e];
      start[e] = start_now[e];
      float given[STATES], out[STATES + SLOTS + UNIT_WEIGHTS];
#pragma unroll
      for (int k = 0; k < STATES; ++k)  // also where a step is not real: the state is held
        if (IS_AFTER[k] >= 0) d[e][k] += d_after[e][k];
#pragma unroll
      for (int k = 0; k < STATES; ++k) given[k] = d[e][k] + (k == 0 ? d_y[e] : 0);
      if (!EARLY) prepare(in[e], kept[e]);
      derivative(kept[e], given, out);
      const bool counts = real[e] && unit.has;
#pragma unroll
      for (int k = 0; k < STATES + SLOTS + UNIT_WEIGHTS; ++k)
        if (!counts) out[k] = k < STATES ? d[e][k] : 0;
#pragma unroll
      for (int g = 0; g < GATES; ++g)
        products.publish(s, e, unit, g, out[STATES + SLOT[g] + (SLOT[g] < SUMMED ? 0 : APART)]);
#pragma unroll
      for (int g = 0; g < GATES; ++g) {
        unit.write<Product>(array(D_STATE_GATES), t, g, GATES, rows,
                            out[STATES + SLOT[g] + (SLOT[g] < SUMMED ? 0 : APART)]);
        if (APART)
          unit.write<Product>(array(D_INPUT_GATES), t, g, GATES, rows, out[STATES + SLOT[g]]);
      }
#pragma unroll
      for (int k = 0; k < STATES; ++k) d[e][k] = out[k];
#pragma unroll
      for (int u = 0; u < UNIT_WEIGHTS; ++u) d_unit[e][u] += out[STATES + SLOTS + u];
    }
  }
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
#pragma unroll
    for (int k = 0; k < STATES; ++k) {
      units[e].write<Float32>(array(D_STATE + k), 0, 0, 1, rows, d[e][k]);
      if (STARTS >= 0)
        units[e].write<Float32>(array(D_INITIAL + k), 0, 0, 1, rows, d_initial[e][k]);
    }
#pragma unroll
    for (int u = 0; u < UNIT_WEIGHTS; ++u)
      units[e].write<Float32>(array(D_UNIT + u), 0, 0, 1, rows, d_unit[e][u]);
  }
  if (!products.given_up()) return;
  for (int k = 0; k < STATES; ++k) spoil(Float32(), D_STATE + k, 1, 1);
  for (int k = 0; k < (STARTS >= 0 ? STATES : 0); ++k) spoil(Float32(), D_INITIAL + k, 1, 1);
  for (int u = 0; u < UNIT_WEIGHTS; ++u) spoil(Float32(), D_UNIT + u, 1, 1);
  spoil(Product(), D_STATE_GATES, steps, GATES);
  if (APART) spoil(Product(), D_INPUT_GATES, steps, GATES);
#endif
}
