// The steps over K of a block: leaf after leaf, in each from period to period, at most 32 k at a time.
#pragma once
#include "cuda/matmul_plan.hpp"

namespace plait {

// A block's turn: which tile of out, and which leaves.
struct Turn {
  int64_t row, column;
  int first_leaf, last_leaf;

  Turn() = default;
  // Tiles of a group of leaves follow each other, in bands of 8 rows of tiles, so that those at work together share operands.
  __device__ Turn(const Leaves& leaves, int64_t turn, int64_t down, int64_t across, int tile_rows, int tile_columns) {
    constexpr int64_t BAND = 8;
    const int group = int(turn / (down * across));
    const int64_t tile = turn % (down * across), band = tile / (BAND * across), within = tile % (BAND * across);
    const int64_t height = down - band * BAND < BAND ? down - band * BAND : BAND;
    row = (band * BAND + within % height) * tile_rows, column = within / height * tile_columns;
    first_leaf = leaves.first[group], last_leaf = leaves.first[group + 1];
  }
};

// Steps of `step` k at most that start afresh at multiples of period, counted from the leaf's begin.
__device__ __forceinline__ int steps_of(const Leaf& leaf, int period, int step) {
  const int length = int(leaf.end - leaf.begin);
  if (length <= period) return (length + step - 1) / step;
  return length / period * ((period + step - 1) / step) + (length % period + step - 1) / step;
}

constexpr int64_t LONGEST_SUM = 1 << 30;  // k is counted in int

struct Walk {
  const Leaves& leaves;
  int period, k, stop, end;
  int leaf, last;

  __device__ Walk(const Leaves& all, const Turn& turn, int period)
      : leaves(all), period(period), leaf(turn.first_leaf), last(turn.last_leaf) {
    begin_leaf();
  }
  __device__ __forceinline__ void begin_leaf() {
    k = int(leaves.leaf[leaf].begin), end = int(leaves.leaf[leaf].end);
    stop = end - k < period ? end : k + period;
  }
  // False if nothing is left; else the next step is from, from + 1 ... of length valid.
  __device__ __forceinline__ bool next(int step, int& from, int& valid) {
    while (k == end) {
      if (leaf + 1 >= last) return false;
      leaf++;
      begin_leaf();
    }
    from = k;
    valid = stop - k < step ? stop - k : step;
    k += valid;
    if (k == stop) stop = end - k < period ? end : k + period;
    return true;
  }
};

}  // namespace plait
