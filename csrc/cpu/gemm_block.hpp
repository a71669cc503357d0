// A block of out through one pass of a matrix multiplication.
#pragma once
#include "cpu/gemm_operand.hpp"

namespace plait {

struct Region {
  int64_t row, column, rows, columns;
};

// Where tiles wait between passes; in a single pass all share the slots of one tile.
struct Slots {
  float* data;
  int64_t tiles;
};

// Its rows in groups whose a lies in L2; a and b are packed for it.
void run_block(const Gemm& g, const TileKernel& kernel, const Pass& pass, const Region& r,
               const Slots& slots, const Packed& a, const Packed& b);

}  // namespace plait
