// The register tile with AMX: 32 x 32 of out in four tiles, which stay in tile registers while k
// runs in blocks of 32. A block is added as the processor's instruction does (amx.cpp).
#include "cpu/amx.hpp"
#include "cpu/gemm_tile.hpp"

namespace plait {
namespace {

constexpr int SIDE = 2 * AMX_ROWS;           // of the tile of out
constexpr int BLOCK = SIDE * AMX_WORDS;      // words of either panel for 32 k
constexpr int64_t AHEAD = 8 * BLOCK;         // b may come from L3
constexpr int64_t PASS = 2048;               // words along k; sums go to memory in between
constexpr int64_t GROUP = 256 * 1024;        // of a: half of these processors' L2

// Tiles 0 1 over 2 3 of the sum, 4 over 5 of a (row by row), 6 beside 7 of b (pair by pair). With
// one tile down the lower half stays away.
template <class T, int DOWN>
PLAIT_INLINE void chain(const Tile& t, const float* init, int64_t init_stride, float* out,
                        int64_t out_stride) {
  if (init) {
    T::template load<0>(init, init_stride);
    T::template load<1>(init + AMX_WORDS, init_stride);
    if (DOWN == 2) {
      T::template load<2>(init + AMX_ROWS * init_stride, init_stride);
      T::template load<3>(init + AMX_ROWS * init_stride + AMX_WORDS, init_stride);
    }
  } else {
    T::template zero<0>();
    T::template zero<1>();
    if (DOWN == 2) {
      T::template zero<2>();
      T::template zero<3>();
    }
  }
  const float *a = t.a, *b = t.b;
  for (int64_t k = 0; k < t.depth; k += AMX_WORDS, a += BLOCK, b += BLOCK) {
    T::template load<4>(a, AMX_WORDS);
    T::template load<6>(b, SIDE);
    T::template add_product<0, 4, 6>();
    T::template load<7>(b + AMX_WORDS, SIDE);
    T::template add_product<1, 4, 7>();
    if (DOWN == 2) {
      T::template load<5>(a + AMX_ROWS * AMX_WORDS, AMX_WORDS);
      T::template add_product<2, 5, 6>();
      T::template add_product<3, 5, 7>();
    }
#pragma GCC unroll 32
    for (int line = 0; line < BLOCK; line += 16) T::prefetch(b + AHEAD + line);
  }
  T::template store<0>(out, out_stride);
  T::template store<1>(out + AMX_WORDS, out_stride);
  if (DOWN == 2) {
    T::template store<2>(out + AMX_ROWS * out_stride, out_stride);
    T::template store<3>(out + AMX_ROWS * out_stride + AMX_WORDS, out_stride);
  }
}

template <class T>
PLAIT_INLINE void run(const Tile& t, int rows) {
  alignas(64) float start[SIDE * SIDE], sums[SIDE * SIDE];
  const bool whole = rows % AMX_ROWS == 0;  // else there are fewer rows in memory than in a tile
  const float* init = t.init;
  int64_t init_stride = t.init_stride;
  if (init && !whole) {
    for (int i = 0; i < SIDE; i++)
      for (int j = 0; j < SIDE; j++)
        start[i * SIDE + j] = i < rows ? init[i * init_stride + j] : 0.0f;
    init = start, init_stride = SIDE;
  }
  const bool direct = whole && t.merges == 0;
  float* out = direct ? t.out : sums;
  const int64_t out_stride = direct ? t.out_stride : SIDE;
  if (rows > AMX_ROWS)
    chain<T, 2>(t, init, init_stride, out, out_stride);
  else
    chain<T, 1>(t, init, init_stride, out, out_stride);
  if (direct) return;
  for (int i = 0; i < rows; i++) {
    float* row = sums + i * SIDE;
    for (int m = 0; m < t.merges; m++) {
      const float* lower = t.lower[m].at + i * t.lower[m].stride;
      for (int j = 0; j < SIDE; j++) row[j] = lower[j] + row[j];
    }
    std::memcpy(t.out + i * t.out_stride, row, SIDE * sizeof(float));
  }
}

void run_emulated(const Tile& t, int rows, int) { run<EmulatedTiles>(t, rows); }

#if defined(__x86_64__) && !defined(PLAIT_NO_AMX)
PLAIT_TARGET_AVX512 void run_amx(const Tile& t, int rows, int) { run<AmxTiles>(t, rows); }
#endif

}  // namespace

const TileKernel* amx_kernel(Isa isa) {
  static const TileKernel emulated{Packing::blocks, SIDE, SIDE, run_emulated, PASS, GROUP,
                                   EmulatedTiles::configure, EmulatedTiles::release};
  if (isa == Isa::amx_bf16_emulated) return &emulated;
#if defined(__x86_64__) && !defined(PLAIT_NO_AMX)
  static const TileKernel amx{Packing::blocks, SIDE, SIDE, run_amx, PASS, GROUP,
                              AmxTiles::configure, AmxTiles::release};
  if (isa == Isa::amx_bf16) return &amx;
#endif
  return nullptr;
}

}  // namespace plait
