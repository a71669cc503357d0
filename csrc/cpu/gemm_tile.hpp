// The innermost piece of a matrix multiplication: one tile of out, in registers while k runs.
#pragma once
#include <cstdint>

#include "core/dtype.hpp"
#include "cpu/isa.hpp"

namespace plait {

constexpr int MAX_TILE = 14 * 32;  // elements of the largest tile

// t(i, j) = init(i, j) or 0; then fma over ascending k of a[k][i] * b[k][j]; then `merges` times
// lower + t; stored in out.
struct Tile {
  const float* a;  // (depth, tile rows) packed
  const float* b;  // (depth, tile columns) packed
  int64_t depth;
  const float* init;  // or null
  int64_t init_stride;
  const float* const* lower;  // tiles (tile rows, tile columns) without gaps
  int merges;
  float* out;
  int64_t out_stride;
};

struct TileKernel {
  int rows, columns;
  void (*run)(const Tile& tile, int rows);  // the first `rows` rows, all columns
};

const TileKernel& tile_kernel(Isa isa);

// Packs x, element (w, k) at x[w * wide_stride + k * depth_stride], in panels of `panel` w each:
// (panels, depth, panel) float32, the last one filled up with zeros.
void pack_panels(const float* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
                 int64_t depth, int panel, float* out);

void pack_panels(const bfloat16* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
                 int64_t depth, int panel, float* out);

}  // namespace plait
