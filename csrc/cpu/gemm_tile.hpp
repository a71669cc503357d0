// The innermost piece of a matrix multiplication: one tile of out, in registers while k runs.
#pragma once
#include <cstdint>

#include "core/dtype.hpp"
#include "cpu/isa.hpp"

namespace plait {

constexpr int MAX_TILE = 14 * 32;  // elements of the largest tile

// What the 4 bytes of a panel's element hold. A term is one float32. Of bfloat16 operands a pair is
// (k, k + 1), which adds the term of k + 1, then that of k; denormal terms and sums count as zero.
// `swapped` are the pairs' terms in that order, as float32: the same bits without the instruction.
enum class Packing { floats, swapped, pairs };

inline int64_t packed_size(Packing packing, int64_t k) {
  return packing == Packing::floats ? k : packing == Packing::pairs ? (k + 1) / 2 : (k + 1) / 2 * 2;
}

// A tile that another is added to.
struct Lower {
  const float* at;
  int64_t stride;
};

// t(i, j) = init(i, j) or 0; then the chain over a[d][i] * b[d][j] for ascending d; then `merges`
// times lower + t; stored in out.
struct Tile {
  const float* a;  // (depth, tile rows) packed
  const float* b;  // (depth, tile columns) packed
  int64_t depth;   // elements packed
  const float* init;  // or null
  int64_t init_stride;
  const Lower* lower;
  int merges;
  float* out;
  int64_t out_stride;
};

struct TileKernel {
  Packing packing;
  int rows, columns;
  void (*run)(const Tile& tile, int rows);  // the first `rows` rows, all columns
};

const TileKernel& tile_kernel(Isa isa, bool pairs);

// Packs x, element (w, k) at x[w * wide_stride + k * depth_stride], in panels of `panel` w each:
// (panels, ..., panel), the last one filled up with zeros, as is the last pair. Panels lie
// panel_stride floats apart. float32 has one packing.
void pack_panels(const float* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
                 int64_t depth, int panel, int64_t panel_stride, Packing, float* out);

void pack_panels(const bfloat16* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
                 int64_t depth, int panel, int64_t panel_stride, Packing packing, float* out);

}  // namespace plait
