// From an operand of a matrix multiplication to the panels that tiles read.
#pragma once
#include "cpu/gemm.hpp"
#include "cpu/gemm_plan.hpp"
#include "cpu/gemm_tile.hpp"
#include "cpu/scratch.hpp"

namespace plait {

// Goes through the places of rows from one on, in order.
class Row {
 public:
  Row(const Rows& rows, int64_t row)
      : rows_(rows), i1_(row / rows.n2 % rows.n1), i2_(row % rows.n2) {
    at_ = row / rows.n2 / rows.n1 * rows.s0 + i1_ * rows.s1 + i2_ * rows.s2;
  }
  int64_t next() {
    const int64_t here = at_;
    at_ += rows_.s2;
    if (++i2_ == rows_.n2) {
      i2_ = 0, at_ += rows_.s1 - rows_.n2 * rows_.s2;
      if (++i1_ == rows_.n1) i1_ = 0, at_ += rows_.s0 - rows_.n1 * rows_.s1;
    }
    return here;
  }
  void fill(int64_t count, int64_t* places) {
    for (int64_t i = 0; i < count; i++) places[i] = next();
  }

 private:
  const Rows& rows_;
  int64_t i1_, i2_, at_;
};

// Panels of as many rows of a, or columns of b, as a tile has, `panel` floats apart; Tile says what
// row and step are.
struct Packed {
  const float* data;
  int64_t panel, row, step;
};

// What a pass needs of `wide` rows of a, or columns of b, from `first` on, in `scratch`.
Packed pack(const Operand& x, bool columns, const Pass& pass, int64_t first, int64_t wide,
            const TileKernel& kernel, Scratch& scratch);

}  // namespace plait
