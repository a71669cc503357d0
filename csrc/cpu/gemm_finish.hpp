// A finished tile of a matrix multiplication on its way from float32 to out.
#pragma once
#include "cpu/gemm.hpp"
#include "cpu/gemm_tile.hpp"

namespace plait {

// Whether out differs from the tile in more than its place.
inline bool needs_finish(const Gemm& g) {
  return g.out_dtype != DType::float32 || g.bias || g.out_rows;
}

// Where the rows of a tile at (row, column) begin in out, in elements.
struct TileRows {
  TileRows(const Gemm& g, int slot, int64_t row, int64_t column, int rows);
  int64_t at[MAX_ROWS];
};

// Asks for the lines of out that a tile will go to, while it is computed: rows lie too far apart
// for the processor to guess them, and a store would wait for each.
void prefetch_tile(const Gemm& g, const TileRows& places, int rows, int columns);

// Bias, of which the tile's begins at `column`, and the one rounding: float32 tile to out.
void finish_tile(const Gemm& g, const float* tile, int64_t stride, int64_t column, int rows,
                 int columns, const TileRows& places);

}  // namespace plait
