// extend_tile for each instruction path: 12 x 32 or 12 x 16 sums in registers with AVX-512, 6 x 16 with AVX2. Every
// element is one chain of correctly rounded fused multiply-adds, so all paths give the same bits.
#include "cpu/conv_tile.hpp"

#include <algorithm>

#include "cpu/fma.hpp"
#include "cpu/isa.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace plait {
namespace {

template <int LANES>
void extend_portable(int m, const Terms& t, float* tile) {
  for (int i = 0; i < m; i++) {
    float sum[LANES];
    for (int lane = 0; lane < LANES; lane++) sum[lane] = tile[i * TILE_LANES + lane];
    for (int64_t row = 0; row < t.rows; row++) {
      const float *a = t.a + i * t.a_m + row * t.a_row, *b = t.b + row * t.b_row;
      for (int64_t k = 0; k < t.n; k++, a += t.a_k, b += t.b_k)
        for (int lane = 0; lane < LANES; lane++) sum[lane] = fused(*a, b[lane], sum[lane]);
    }
    for (int lane = 0; lane < LANES; lane++) tile[i * TILE_LANES + lane] = sum[lane];
  }
}

#if defined(__x86_64__)
using Extend = void (*)(const Terms&, float*);

template <int M, int VECTORS>
PLAIT_TARGET_AVX512 void extend_avx512(const Terms& t, float* tile) {
  __m512 sum[M][VECTORS];
#pragma GCC unroll 12
  for (int m = 0; m < M; m++)
    for (int v = 0; v < VECTORS; v++) sum[m][v] = _mm512_loadu_ps(tile + m * TILE_LANES + 16 * v);
  for (int64_t row = 0; row < t.rows; row++) {
    const float *a = t.a + row * t.a_row, *b = t.b + row * t.b_row;
    for (int64_t k = 0; k < t.n; k++, a += t.a_k, b += t.b_k) {
      __m512 y[VECTORS];
      for (int v = 0; v < VECTORS; v++) y[v] = _mm512_loadu_ps(b + 16 * v);
#pragma GCC unroll 12
      for (int m = 0; m < M; m++) {
        const __m512 x = _mm512_set1_ps(a[m * t.a_m]);
        for (int v = 0; v < VECTORS; v++) sum[m][v] = _mm512_fmadd_ps(x, y[v], sum[m][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; m++)
    for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(tile + m * TILE_LANES + 16 * v, sum[m][v]);
}

template <int VECTORS>
void run_avx512(int m, const Terms& t, float* tile) {
  static const Extend table[TILE_ROWS] = {
      extend_avx512<1, VECTORS>, extend_avx512<2, VECTORS>,  extend_avx512<3, VECTORS>,
      extend_avx512<4, VECTORS>, extend_avx512<5, VECTORS>,  extend_avx512<6, VECTORS>,
      extend_avx512<7, VECTORS>, extend_avx512<8, VECTORS>,  extend_avx512<9, VECTORS>,
      extend_avx512<10, VECTORS>, extend_avx512<11, VECTORS>, extend_avx512<12, VECTORS>};
  table[m - 1](t, tile);
}

// Half of the lanes: 16.
template <int M>
PLAIT_TARGET_AVX2 void extend_avx2(const Terms& t, float* tile) {
  __m256 sum[M][2];
#pragma GCC unroll 6
  for (int m = 0; m < M; m++)
    for (int v = 0; v < 2; v++) sum[m][v] = _mm256_loadu_ps(tile + m * TILE_LANES + 8 * v);
  for (int64_t row = 0; row < t.rows; row++) {
    const float *a = t.a + row * t.a_row, *b = t.b + row * t.b_row;
    for (int64_t k = 0; k < t.n; k++, a += t.a_k, b += t.b_k) {
      const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 6
      for (int m = 0; m < M; m++) {
        const __m256 x = _mm256_set1_ps(a[m * t.a_m]);
        sum[m][0] = _mm256_fmadd_ps(x, b0, sum[m][0]);
        sum[m][1] = _mm256_fmadd_ps(x, b1, sum[m][1]);
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; m++)
    for (int v = 0; v < 2; v++) _mm256_storeu_ps(tile + m * TILE_LANES + 8 * v, sum[m][v]);
}

void run_avx2(int m, int64_t lanes, const Terms& t, float* tile) {
  constexpr int ROWS = 6, HALF = TILE_LANES / 2;
  static const Extend table[ROWS] = {extend_avx2<1>, extend_avx2<2>, extend_avx2<3>,
                                     extend_avx2<4>, extend_avx2<5>, extend_avx2<6>};
  for (int half = 0; half < (lanes > HALF ? 2 : 1); half++)
    for (int done = 0; done < m; done += ROWS) {
      Terms part = t;
      part.a += done * t.a_m, part.b += half * HALF;
      table[std::min(ROWS, m - done) - 1](part, tile + done * TILE_LANES + half * HALF);
    }
}
#endif

PLAIT_INLINE void widen_body(const bfloat16* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i++) out[i] = to_float(x[i]);
}
PLAIT_KERNEL(widen, widen_body)

}  // namespace

void extend_tile(int m, int64_t lanes, const Terms& terms, float* tile) {
#if defined(__x86_64__)
  switch (vector_isa()) {
    case Isa::avx512:
      return lanes > 16 ? run_avx512<2>(m, terms, tile) : run_avx512<1>(m, terms, tile);
    case Isa::avx2:
      return run_avx2(m, lanes, terms, tile);
    default:
      break;
  }
#endif
  if (lanes > TILE_LANES / 2)
    extend_portable<TILE_LANES>(m, terms, tile);
  else
    extend_portable<TILE_LANES / 2>(m, terms, tile);
}

const float* widened(const float* x, int64_t, Scratch&) { return x; }

const float* widened(const bfloat16* x, int64_t n, Scratch& copy) {
  float* out = copy.get<float>(n);
  widen(x, n, out);
  return out;
}

}  // namespace plait
