// The inner loop of convolutions: a tile of float32 sums held in registers, each one chain of fused multiply-adds.
// It reads pixels where they lie, by strides; no unfolded copy of the image is made.
#pragma once
#include "core/dtype.hpp"
#include "cpu/scratch.hpp"

namespace plait {

constexpr int TILE_ROWS = 12;   // most rows of a tile
constexpr int TILE_LANES = 32;  // its columns, contiguous in b

// For each row, then each k: tile[m][lane] = fma(a[m a_m + k a_k + row a_row], b[k b_k + row b_row + lane], tile).
struct Terms {
  const float* a;
  int64_t a_m, a_k, a_row;
  const float* b;
  int64_t b_k, b_row;
  int64_t n, rows;
};

// Continues the chains of tile (m, TILE_LANES), 1 <= m <= TILE_ROWS. Of b, TILE_LANES floats are read, or half of
// them if `lanes`, what the caller needs of the tile, is at most that.
void extend_tile(int m, int64_t lanes, const Terms& terms, float* tile);

// Cuts n rows into the fewest tiles, of nearly equal height: tile t is [tile_begin(n, t), tile_begin(n, t + 1)).
inline int64_t tile_count(int64_t n) { return (n + TILE_ROWS - 1) / TILE_ROWS; }
inline int64_t tile_begin(int64_t n, int64_t t) { return n * t / tile_count(n); }

// n elements of either storage as float32: x itself, or a copy in `copy`.
const float* widened(const float* x, int64_t n, Scratch& copy);
const float* widened(const bfloat16* x, int64_t n, Scratch& copy);

}  // namespace plait
