// Packs the left operand of a matrix multiplication in blocks: 32 rows of 32 bfloat16 each, one
// after the other, as AMX loads them.
#include "cpu/gemm_tile.hpp"
#include "cpu/transpose.hpp"

namespace plait {
namespace {

constexpr int SIDE = 32, WORDS = SIDE / 2;

// One block with any strides: `wide` rows of `depth`, zeros behind them.
template <class At>
PLAIT_INLINE void plain(const bfloat16* x, int64_t wide_stride, At at, int wide, int depth,
                        float* out) {
  uint16_t row[SIDE];
  for (int w = 0; w < SIDE; w++) {
    for (int k = 0; k < SIDE; k++)
      row[k] = w < wide && k < depth ? x[w * wide_stride + at(k)].bits : 0;
    std::memcpy(out + w * WORDS, row, sizeof(row));
  }
}

// A whole block from rows of k: eight w and 16 k at a time.
template <class At>
PLAIT_INLINE void turned(const bfloat16* x, At at, float* out) {
  for (int k = 0; k < SIDE; k += 16)
    for (int w = 0; w < SIDE; w += 8) {
      Word8 r[8];
#pragma GCC unroll 8
      for (int pair = 0; pair < 8; pair++) {
        const int64_t first = k + 2 * pair;
        r[pair] = words<8>(x + at(first) + w) | words<8>(x + at(first + 1) + w) << 16;
      }
      transpose(r);
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) std::memcpy(out + (w + i) * WORDS + k / 2, &r[i], 32);
    }
}

template <class At>
PLAIT_INLINE void pack_rows_body(const bfloat16* x, int64_t wide_stride, At at, bool adjacent,
                                 int64_t wide, int64_t depth, int64_t panel_stride, float* out) {
  const int64_t whole = depth / SIDE * SIDE;
  if (adjacent) {  // along the rows of x; nothing reads sums of rows behind the last
    for (int64_t w = 0; w < wide; w++) {
      float* to = out + w / SIDE * panel_stride + w % SIDE * WORDS;
      for (int64_t k = 0; k < whole; k += SIDE)
        std::memcpy(to + k * WORDS, x + w * wide_stride + k, SIDE * sizeof(bfloat16));
    }
  }
  for (int64_t k = adjacent ? whole : 0; k < depth; k += SIDE)
    for (int64_t w = 0; w < wide; w += SIDE) {
      const bfloat16* from = x + w * wide_stride + at.skip(k);
      float* to = out + w / SIDE * panel_stride + k * WORDS;
      const int rows = int(wide - w < SIDE ? wide - w : SIDE);
      const int here = int(depth - k < SIDE ? depth - k : SIDE);
      if (wide_stride == 1 && rows == SIDE && here == SIDE)
        turned(from, at.from(k), to);
      else
        plain(from, wide_stride, at.from(k), rows, here, to);
    }
}

PLAIT_KERNEL(pack_blocks, pack_rows_body)

}  // namespace

void pack_rows(const bfloat16* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
               int64_t depth, int64_t panel_stride, float* out) {
  pack_blocks(x, wide_stride, Even{depth_stride}, depth_stride == 1, wide, depth, panel_stride,
              out);
}

void pack_rows(const bfloat16* x, const int64_t* places, int64_t wide, int64_t depth,
               int64_t panel_stride, float* out) {
  pack_blocks(x, int64_t(1), Listed{places}, false, wide, depth, panel_stride, out);
}

}  // namespace plait
