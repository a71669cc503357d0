// extend_tile for each instruction path: 12 x 32 sums fill the registers of AVX-512, 6 x 16 those of AVX2. Every
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

void extend_portable(int m, const Terms& t, float* tile) {
  for (int i = 0; i < m; i++) {
    float sum[TILE_LANES];
    for (int lane = 0; lane < TILE_LANES; lane++) sum[lane] = tile[i * TILE_LANES + lane];
    for (int64_t row = 0; row < t.rows; row++) {
      const float *a = t.a + i * t.a_m + row * t.a_row, *b = t.b + row * t.b_row;
      for (int64_t k = 0; k < t.n; k++, a += t.a_k, b += t.b_k)
        for (int lane = 0; lane < TILE_LANES; lane++) sum[lane] = fused(*a, b[lane], sum[lane]);
    }
    for (int lane = 0; lane < TILE_LANES; lane++) tile[i * TILE_LANES + lane] = sum[lane];
  }
}

#if defined(__x86_64__)
using Extend = void (*)(const Terms&, float*);

template <int M>
PLAIT_TARGET_AVX512 void extend_avx512(const Terms& t, float* tile) {
  __m512 sum[M][2];
#pragma GCC unroll 12
  for (int m = 0; m < M; m++)
    for (int v = 0; v < 2; v++) sum[m][v] = _mm512_loadu_ps(tile + m * TILE_LANES + 16 * v);
  for (int64_t row = 0; row < t.rows; row++) {
    const float *a = t.a + row * t.a_row, *b = t.b + row * t.b_row;
    for (int64_t k = 0; k < t.n; k++, a += t.a_k, b += t.b_k) {
      const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 12
      for (int m = 0; m < M; m++) {
        const __m512 x = _mm512_set1_ps(a[m * t.a_m]);
        sum[m][0] = _mm512_fmadd_ps(x, b0, sum[m][0]);
        sum[m][1] = _mm512_fmadd_ps(x, b1, sum[m][1]);
      }
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; m++)
    for (int v = 0; v < 2; v++) _mm512_storeu_ps(tile + m * TILE_LANES + 16 * v, sum[m][v]);
}

template <int M>
PLAIT_TARGET_AVX2 void extend_avx2(const Terms& t, float* tile) {
  for (int half = 0; half < 2; half++, tile += 16) {
    __m256 sum[M][2];
#pragma GCC unroll 6
    for (int m = 0; m < M; m++)
      for (int v = 0; v < 2; v++) sum[m][v] = _mm256_loadu_ps(tile + m * TILE_LANES + 8 * v);
    for (int64_t row = 0; row < t.rows; row++) {
      const float *a = t.a + row * t.a_row, *b = t.b + row * t.b_row + 16 * half;
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
}

const Extend avx512[TILE_ROWS] = {
    extend_avx512<1>, extend_avx512<2>, extend_avx512<3>,  extend_avx512<4>,
    extend_avx512<5>, extend_avx512<6>, extend_avx512<7>,  extend_avx512<8>,
    extend_avx512<9>, extend_avx512<10>, extend_avx512<11>, extend_avx512<12>};
constexpr int AVX2_ROWS = 6;
const Extend avx2[AVX2_ROWS] = {extend_avx2<1>, extend_avx2<2>, extend_avx2<3>,
                                extend_avx2<4>, extend_avx2<5>, extend_avx2<6>};
#endif

PLAIT_INLINE void widen_body(const bfloat16* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i++) out[i] = to_float(x[i]);
}
PLAIT_KERNEL(widen, widen_body)

}  // namespace

void extend_tile(int m, const Terms& terms, float* tile) {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512:
      return avx512[m - 1](terms, tile);
    case Isa::avx2: {
      Terms part = terms;
      for (int done = 0; done < m; done += AVX2_ROWS) {
        avx2[std::min(AVX2_ROWS, m - done) - 1](part, tile + done * TILE_LANES);
        part.a += AVX2_ROWS * terms.a_m;
      }
      return;
    }
    default:
      break;
  }
#endif
  extend_portable(m, terms, tile);
}

const float* widened(const float* x, int64_t, Scratch&) { return x; }

const float* widened(const bfloat16* x, int64_t n, Scratch& copy) {
  float* out = copy.get<float>(n);
  widen(x, n, out);
  return out;
}

}  // namespace plait
