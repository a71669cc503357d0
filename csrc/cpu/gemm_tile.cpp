// Register tiles: 14 x 32 with AVX-512, 6 x 16 with AVX2, 4 x 16 in vectors of four. Every element
// is one chain of correctly rounded fused multiply-adds, so all give the same bits. So do pairs:
// AVX-512 BF16's instruction is two such, the second element first, and knows no denormals.
#include "cpu/gemm_tile.hpp"

#include <cmath>
#include <limits>
#include <utility>

#include "cpu/fma.hpp"
#include "cpu/threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace plait {
namespace {

constexpr int PORTABLE_ROWS = 4, PORTABLE_COLUMNS = 16;

// Not inlined: what it computes must not move to where denormals count otherwise.
__attribute__((noinline)) void run_portable(const Tile& t, int rows, int) {
  constexpr int N = PORTABLE_COLUMNS, V = N / 4;
  for (int i = 0; i < rows; i++) {
    Float4 c[V] = {}, x[V];
    if (t.init) std::memcpy(c, t.init + i * t.init_stride, sizeof(c));
    for (int64_t k = 0; k < t.depth; k++) {
      const float one = t.a[i * t.a_row + k * t.a_step];
      const Float4 a = {one, one, one, one};
      std::memcpy(x, t.b + k * N, sizeof(x));
      for (int j = 0; j < V; j++) c[j] = fused(a, x[j], c[j]);
    }
    for (int m = 0; m < t.merges; m++) {
      std::memcpy(x, t.lower[m].at + i * t.lower[m].stride, sizeof(x));
      for (int j = 0; j < V; j++) c[j] = x[j] + c[j];
    }
    std::memcpy(t.out + i * t.out_stride, c, sizeof(c));
  }
}

#if defined(__x86_64__)
constexpr auto run_portable_flushed = run_portable;
#else

constexpr float LEAST = std::numeric_limits<float>::min();

float flushed(float x) {
  return std::fabs(x) < LEAST ? std::copysign(0.0f, x) : x;
}

// fma with denormals as zero, where the processor's flags would not give x86-64's bits. A sum that
// rounds up to 2^-126 with 24 bits is not tiny: it is 2^-126 - 2^-151 or more. There the sum in
// double is exact, as a product of bfloat16 has 16 bits.
float fused_flushed(float a, float b, float c) {
  a = flushed(a), b = flushed(b), c = flushed(c);
  const float sum = std::fma(a, b, c);
  return std::fabs(double(a) * b + c) < 0x1p-126 - 0x1p-151 ? std::copysign(0.0f, sum) : sum;
}

// A chain for run_flushed: a tile in which a sum was flushed, which is rare, is done again.
void run_portable_flushed(const Tile& t, int rows, int columns) {
  run_portable(t, rows, columns);
  if (!flushed_too_much()) return;
  reset_rounding();
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < PORTABLE_COLUMNS; j++) {
      float c = t.init ? t.init[i * t.init_stride + j] : 0.0f;
      for (int64_t k = 0; k < t.depth; k++)
        c = fused_flushed(t.a[i * t.a_row + k * t.a_step], t.b[k * PORTABLE_COLUMNS + j], c);
      t.out[i * t.out_stride + j] = c;
    }
}

#endif

// RUN with denormals as zero while the chain runs, but not in what comes after it.
template <void (*RUN)(const Tile&, int, int), int COLUMNS>
void run_flushed(const Tile& t, int rows, int columns) {
  alignas(64) float local[MAX_TILE];  // t.out may be one of t.lower
  Tile chain = t;
  chain.merges = 0, chain.out = local, chain.out_stride = COLUMNS;
  flush_denormals();
  RUN(chain, rows, columns);
  reset_rounding();
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) {
      float x = local[i * COLUMNS + j];
      for (int m = 0; m < t.merges; m++) x = t.lower[m].at[i * t.lower[m].stride + j] + x;
      t.out[i * t.out_stride + j] = x;
    }
}

#if defined(__x86_64__)

// PANEL: rows of a lie side by side, and need no addresses of their own.
template <bool PAIRS, bool PANEL, int VECTORS, int ROWS>
PLAIT_TARGET_AVX512 void tile_avx512(const Tile& t) {
  __m512 c[ROWS][VECTORS];
  if (t.init) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++)
        c[i][v] = _mm512_loadu_ps(t.init + i * t.init_stride + 16 * v);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) c[i][v] = _mm512_setzero_ps();
  }
  const float *a = t.a, *b = t.b;
  const int64_t row = PANEL ? 1 : t.a_row, step = t.a_step;
  for (int64_t k = 0; k < t.depth; k++, a += step, b += 32) {
    __m512 y[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) y[v] = _mm512_loadu_ps(b + 16 * v);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const __m512 x = _mm512_set1_ps(a[i * row]);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) {
        if (PAIRS)  // written out: compilers before GCC 10 do not know it
          asm("vdpbf16ps %2, %1, %0" : "+v"(c[i][v]) : "v"(y[v]), "v"(x));
        else
          c[i][v] = _mm512_fmadd_ps(x, y[v], c[i][v]);
      }
    }
  }
  for (int m = 0; m < t.merges; m++) {
    const float* lower = t.lower[m].at;
    const int64_t stride = t.lower[m].stride;
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++)
        c[i][v] = _mm512_add_ps(_mm512_loadu_ps(lower + i * stride + 16 * v), c[i][v]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(t.out + i * t.out_stride + 16 * v, c[i][v]);
}

template <bool PAIRS, int... LESS>
void run_avx512(const Tile& t, int rows, int columns, std::integer_sequence<int, LESS...>) {
  using Run = void (*)(const Tile&);
  static const Run half[] = {tile_avx512<PAIRS, false, 1, LESS + 1>...};
  static const Run whole[] = {tile_avx512<PAIRS, false, 2, LESS + 1>...};
  static const Run panels[] = {tile_avx512<PAIRS, true, 2, LESS + 1>...};
  (columns <= 16 ? half : t.a_row == 1 ? panels : whole)[rows - 1](t);
}
template <bool PAIRS>
void run_avx512(const Tile& t, int rows, int columns) {
  run_avx512<PAIRS>(t, rows, columns, std::make_integer_sequence<int, 14>{});
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
  const int64_t row = t.a_row, step = t.a_step;
  for (int64_t k = 0; k < t.depth; k++, a += step, b += 16) {
    const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      const __m256 x = _mm256_broadcast_ss(a + i * row);
      c[i][0] = _mm256_fmadd_ps(x, b0, c[i][0]);
      c[i][1] = _mm256_fmadd_ps(x, b1, c[i][1]);
    }
  }
  for (int m = 0; m < t.merges; m++) {
    const float* lower = t.lower[m].at;
    const int64_t stride = t.lower[m].stride;
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      c[i][0] = _mm256_add_ps(_mm256_loadu_ps(lower + i * stride), c[i][0]);
      c[i][1] = _mm256_add_ps(_mm256_loadu_ps(lower + i * stride + 8), c[i][1]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++) {
    _mm256_storeu_ps(t.out + i * t.out_stride, c[i][0]);
    _mm256_storeu_ps(t.out + i * t.out_stride + 8, c[i][1]);
  }
}

void run_avx2(const Tile& t, int rows, int) {
  using Run = void (*)(const Tile&);
  static const Run table[] = {tile_avx2<1>, tile_avx2<2>, tile_avx2<3>,
                              tile_avx2<4>, tile_avx2<5>, tile_avx2<6>};
  table[rows - 1](t);
}

#endif

}  // namespace

const TileKernel& tile_kernel(Isa isa, bool pairs) {
  constexpr Packing F = Packing::floats, S = Packing::swapped;
  static const TileKernel portable[] = {
      {F, PORTABLE_ROWS, PORTABLE_COLUMNS, run_portable},
      {S, PORTABLE_ROWS, PORTABLE_COLUMNS, run_flushed<run_portable_flushed, PORTABLE_COLUMNS>}};
#if defined(__x86_64__)
  static const TileKernel avx2[] = {{F, 6, 16, run_avx2}, {S, 6, 16, run_flushed<run_avx2, 16>}};
  static const TileKernel avx512[] = {{F, 14, 32, run_avx512<false>},
                                      {S, 14, 32, run_flushed<run_avx512<false>, 32>}};
  static const TileKernel avx512_bf16[] = {{F, 14, 32, run_avx512<false>},
                                           {Packing::pairs, 14, 32, run_avx512<true>}};
  if (isa == Isa::avx512_bf16 || isa == Isa::amx_bf16) return avx512_bf16[pairs];
  if (isa == Isa::amx_bf16_emulated) isa = vector_isa();
  if (isa == Isa::avx512) return avx512[pairs];
  if (isa == Isa::avx2) return avx2[pairs];
#endif
  (void)isa;
  return portable[pairs];
}

}  // namespace plait
