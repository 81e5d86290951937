// Products with packed weights.
//
// A panel is a strip of the weights as wide as a few vectors, all rows of it one after the other.
// A register tile of some rows times one panel stays in registers for the whole sum, which is
// taken in the order of k, whatever the tile: a row's result does not depend on its neighbours.

namespace {

using namespace jaxrnn;

#if JAXRNN_BYTES == 64 || defined(__aarch64__)  // 32 vector registers
constexpr int kPanel = 4;
constexpr int rows_of(int vectors) { return vectors >= 4 ? 6 : vectors == 3 ? 8 : 12; }
#else  // 16
constexpr int kPanel = 2;
constexpr int rows_of(int) { return 6; }
#endif

template <class T>
struct Factor {
  const T* panel;    // whose rows are `Sum::panel_row` apart
  const T* init;     // what the sum begins with, `init_row` elements from row to row
  int64_t init_row;
  T* out;
};

// What is summed over: how many terms, how far apart they are in a row of the left side, and in the
// right side, 0 for panels packed by `pack`.
struct Sum {
  int64_t terms, left, right;
};

// out = init + a * panel, for N panels at once: one or two rows alone would wait for their sums.
template <class T, int N, int ROWS, int VECTORS>
inline void tile(Sum sums, const T* const* a, const Factor<T>* f, int64_t out_row) {
  typedef typename Vector<T>::type V;
  constexpr int L = kLanes<T>;
  V sum[N][ROWS][VECTORS];
  const T* panel[N];
  for (int n = 0; n < N; ++n) {
    panel[n] = f[n].panel;
    for (int m = 0; m < ROWS; ++m)
      for (int v = 0; v < VECTORS; ++v) sum[n][m][v] = load(f[n].init + m * f[n].init_row + v * L);
  }
  const T* row[ROWS];
  for (int m = 0; m < ROWS; ++m) row[m] = a[m];
  const int64_t left_step = sums.left, right_step = sums.right ? sums.right : VECTORS * L;
#pragma GCC unroll 4
  for (int64_t k = 0, l = 0, r = 0; k < sums.terms; ++k, l += left_step, r += right_step) {
    V right[N][VECTORS];
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) right[n][v] = load(panel[n] + r + v * L);
    for (int m = 0; m < ROWS; ++m) {
      V left = broadcast(row[m][l]);
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECTORS; ++v) sum[n][m][v] += left * right[n][v];
    }
  }
  for (int n = 0; n < N; ++n)
    for (int m = 0; m < ROWS; ++m)
      for (int v = 0; v < VECTORS; ++v) store(f[n].out + m * out_row + v * L, sum[n][m][v]);
}

template <class T, int ROWS, int VECTORS>
inline void tiles(int count, Sum terms, const T* const* a, const Factor<T>* f, int64_t out_row) {
  if constexpr (ROWS <= 2) {
    constexpr int N = ROWS == 1 ? 4 : 2;
    for (; count >= N; count -= N, f += N) tile<T, N, ROWS, VECTORS>(terms, a, f, out_row);
    if (N == 4 && count >= 2) {
      tile<T, 2, ROWS, VECTORS>(terms, a, f, out_row);
      count -= 2, f += 2;
    }
  }
  for (; count > 0; --count, ++f) tile<T, 1, ROWS, VECTORS>(terms, a, f, out_row);
}

template <class T, int VECTORS>
void rows(int rows, int count, Sum terms, const T* const* a, const Factor<T>* f, int64_t out_row) {
  switch (rows) {
#define CASE(N) \
  case N:       \
    if constexpr (N <= rows_of(VECTORS)) return tiles<T, N, VECTORS>(count, terms, a, f, out_row); \
    break;
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
  }
}

// `rows` rows, at most `rows_of(vectors)`, times `count` panels of `vectors` vectors.
template <class T>
inline void multiply(int vectors, int count_rows, int count, Sum terms, const T* const* a,
                     const Factor<T>* f, int64_t out_row) {
  switch (vectors) {
    case 1: return rows<T, 1>(count_rows, count, terms, a, f, out_row);
    case 2: return rows<T, 2>(count_rows, count, terms, a, f, out_row);
#if JAXRNN_BYTES == 64 || defined(__aarch64__)
    case 3: return rows<T, 3>(count_rows, count, terms, a, f, out_row);
    case 4: return rows<T, 4>(count_rows, count, terms, a, f, out_row);
#endif
  }
}

// Rows of a product, whose panels lie side by side: [panels][terms][vectors of a panel].
//
// `row(m, i)` gives the m-th row of the left side, the i-th of a tile; it is asked for all of them,
// from the first on, for each panel. Factors are given for the whole width, and cut into panels
// here.
template <class T, class Row>
void product(int64_t count_rows, int width, Sum terms, const Factor<T>* f, int factors,
             int64_t out_row, Row row) {
  constexpr int L = kLanes<T>;
  // One factor's panel stays in the cache for all rows; few rows take several factors together.
  int together = count_rows <= 2 ? factors : 1;
  for (int g = 0; g < factors; g += together)
    for (int first = 0; first < width; first += kPanel * L) {
      int vectors = (width - first) / L < kPanel ? (width - first) / L : kPanel;
      // Tiles of nearly equal heights: a low one would wait for the panel.
      int64_t left = (count_rows + rows_of(vectors) - 1) / rows_of(vectors);
      for (int64_t m = 0, n; m < count_rows; m += n, --left) {
        n = (count_rows - m + left - 1) / left;
        const T* a[kMaxRows];
        for (int i = 0; i < n; ++i) a[i] = row(m + i, i);
        Factor<T> part[kMaxGates];
        for (int i = 0; i < together; ++i) {
          const Factor<T>& whole = f[g + i];
          part[i] = {whole.panel + first * (terms.right ? 1 : terms.terms),
                     whole.init + m * whole.init_row + first, whole.init_row,
                     whole.out + m * out_row + first};
        }
        multiply<T>(vectors, n, together, terms, a, part, out_row);
      }
    }
}

// Packs `terms` rows of `width` units, with strides, into panels of `total` rows in all, from row
// `begin` on; padded with zeros to `padded` units.
template <class T>
void pack(T* to, const T* from, int64_t terms, int64_t term, int width, int64_t unit, int padded,
          int64_t begin, int64_t total) {
  constexpr int L = kLanes<T>;
  for (int first = 0; first < padded; first += kPanel * L) {
    int wide = padded - first < kPanel * L ? padded - first : kPanel * L;
    int real = width - first < wide ? (width > first ? width - first : 0) : wide;
    T* panel = to + first * total + begin * wide;
    if (unit == 1) {
      for (int64_t k = 0; k < terms; ++k, panel += wide) {
        memcpy(panel, from + k * term + first, real * sizeof(T));
        for (int u = real; u < wide; ++u) panel[u] = 0;
      }
    } else {  // transposed: a few terms at a time, so that what is written stays in the cache
      for (int64_t k = 0; k < terms; k += 16) {
        int64_t end = k + 16 < terms ? k + 16 : terms;
        for (int u = 0; u < wide; ++u)
          for (int64_t j = k; j < end; ++j)
            panel[j * wide + u] = u < real ? from[j * term + (first + u) * unit] : T(0);
      }
    }
  }
}

template <class T>
void pack(T* to, const T* from, int64_t terms, int64_t term, int width, int64_t unit, int padded) {
  pack(to, from, terms, term, width, unit, padded, 0, terms);
}

}  // namespace
