// Register tiles: 14 x 32 with AVX-512, 6 x 16 with AVX2, 4 x 16 in vectors of four. Every element
// is one chain of correctly rounded fused multiply-adds, so all give the same bits.
#include "cpu/gemm_tile.hpp"

#include "cpu/fma.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace plait {
namespace {

constexpr int PORTABLE_ROWS = 4, PORTABLE_COLUMNS = 16;

void run_portable(const Tile& t, int rows) {
  constexpr int N = PORTABLE_COLUMNS, V = N / 4;
  for (int i = 0; i < rows; i++) {
    Float4 c[V] = {}, x[V];
    if (t.init) std::memcpy(c, t.init + i * t.init_stride, sizeof(c));
    for (int64_t k = 0; k < t.depth; k++) {
      const float one = t.a[k * PORTABLE_ROWS + i];
      const Float4 a = {one, one, one, one};
      std::memcpy(x, t.b + k * N, sizeof(x));
      for (int j = 0; j < V; j++) c[j] = fused(a, x[j], c[j]);
    }
    for (int m = 0; m < t.merges; m++) {
      std::memcpy(x, t.lower[m] + i * N, sizeof(x));
      for (int j = 0; j < V; j++) c[j] = x[j] + c[j];
    }
    std::memcpy(t.out + i * t.out_stride, c, sizeof(c));
  }
}

#if defined(__x86_64__)

template <int ROWS>
PLAIT_TARGET_AVX512 void tile_avx512(const Tile& t) {
  __m512 c[ROWS][2];
  if (t.init) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      c[i][0] = _mm512_loadu_ps(t.init + i * t.init_stride);
      c[i][1] = _mm512_loadu_ps(t.init + i * t.init_stride + 16);
    }
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) c[i][0] = c[i][1] = _mm512_setzero_ps();
  }
  const float *a = t.a, *b = t.b;
  for (int64_t k = 0; k < t.depth; k++, a += 14, b += 32) {
    const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const __m512 x = _mm512_set1_ps(a[i]);
      c[i][0] = _mm512_fmadd_ps(x, b0, c[i][0]);
      c[i][1] = _mm512_fmadd_ps(x, b1, c[i][1]);
    }
  }
  for (int m = 0; m < t.merges; m++) {
    const float* lower = t.lower[m];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      c[i][0] = _mm512_add_ps(_mm512_loadu_ps(lower + i * 32), c[i][0]);
      c[i][1] = _mm512_add_ps(_mm512_loadu_ps(lower + i * 32 + 16), c[i][1]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++) {
    _mm512_storeu_ps(t.out + i * t.out_stride, c[i][0]);
    _mm512_storeu_ps(t.out + i * t.out_stride + 16, c[i][1]);
  }
}

void run_avx512(const Tile& t, int rows) {
  using Run = void (*)(const Tile&);
  static const Run table[] = {tile_avx512<1>,  tile_avx512<2>,  tile_avx512<3>,  tile_avx512<4>,
                              tile_avx512<5>,  tile_avx512<6>,  tile_avx512<7>,  tile_avx512<8>,
                              tile_avx512<9>,  tile_avx512<10>, tile_avx512<11>, tile_avx512<12>,
                              tile_avx512<13>, tile_avx512<14>};
  table[rows - 1](t);
}

template <int ROWS>
PLAIT_TARGET_AVX2 void tile_avx2(const Tile& t) {
  __m256 c[ROWS][2];
  if (t.init) {
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      c[i][0] = _mm256_loadu_ps(t.init + i * t.init_stride);
      c[i][1] = _mm256_loadu_ps(t.init + i * t.init_stride + 8);
    }
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) c[i][0] = c[i][1] = _mm256_setzero_ps();
  }
  const float *a = t.a, *b = t.b;
  for (int64_t k = 0; k < t.depth; k++, a += 6, b += 16) {
    const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      const __m256 x = _mm256_broadcast_ss(a + i);
      c[i][0] = _mm256_fmadd_ps(x, b0, c[i][0]);
      c[i][1] = _mm256_fmadd_ps(x, b1, c[i][1]);
    }
  }
  for (int m = 0; m < t.merges; m++) {
    const float* lower = t.lower[m];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      c[i][0] = _mm256_add_ps(_mm256_loadu_ps(lower + i * 16), c[i][0]);
      c[i][1] = _mm256_add_ps(_mm256_loadu_ps(lower + i * 16 + 8), c[i][1]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++) {
    _mm256_storeu_ps(t.out + i * t.out_stride, c[i][0]);
    _mm256_storeu_ps(t.out + i * t.out_stride + 8, c[i][1]);
  }
}

void run_avx2(const Tile& t, int rows) {
  using Run = void (*)(const Tile&);
  static const Run table[] = {tile_avx2<1>, tile_avx2<2>, tile_avx2<3>,
                              tile_avx2<4>, tile_avx2<5>, tile_avx2<6>};
  table[rows - 1](t);
}

#endif

}  // namespace

const TileKernel& tile_kernel(Isa isa) {
  static const TileKernel portable{PORTABLE_ROWS, PORTABLE_COLUMNS, run_portable};
#if defined(__x86_64__)
  static const TileKernel avx512{14, 32, run_avx512}, avx2{6, 16, run_avx2};
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx2) return avx2;
#endif
  (void)isa;
  return portable;
}

}  // namespace plait
