// Products of matrices whose rows belong to several ranks, multiplied and communicated by one kernel: what it is told.
//
// The rows of the whole product (m, n) are cut at `bounds`, a segment for each rank. A unit is what is told by one flag: of a
// sum the part of a tile that some threads have; of what is gathered PIECE_ROWS rows of x.
#pragma once
#include <optional>
#include <vector>

#include "core/array.hpp"
#include "peer/device_layout.hpp"

namespace plait {

constexpr int PIECE_ROWS = 32;    // not measured
constexpr int PRODUCT_DEPTH = 4;  // sums set aside while a tree of ranks is added up, in registers
constexpr int WIDE_SUMS = 192, WIDE_GATHER = 256;  // columns of wgmma's tiles; with 256 the sums' kernel spills

struct ProductTask {
  Said said;
  bool sums, gather;  // x w summed over ranks, rows to their rank or (gather) to all; else the rows of x gathered
  int m, n, k;
  int bounds[MOST_RANKS + 1];
  // In the arenas, what peers write: parts of this rank's sums, float32 (ranks, rows of the rank, n); or rows of x (m, k).
  int64_t places[MOST_RANKS];
  int64_t outs[MOST_RANKS];  // in the arenas, where all rows go to all: (m, n)
  char* out;                 // of this rank: its rows of the sum, or (m, n)
  const char* x;             // of this rank
  bool half;                 // out is bfloat16; else float32
  uint8_t merges[MOST_RANKS];

  PLAIT_INLINE int rows(int q) const { return bounds[q + 1] - bounds[q]; }
};

// A checked call of one rank: w (k, n), and x (rows, k), all rows where they are summed, else this rank's. All is bfloat16 and
// contiguous, beside boundaries of 16 bytes; out, too, but may be float32. leaves: {0, ..., k}, of this rank's own sum.
struct ProductCall {
  ProductTask task = {};
  const void *x, *w;
  std::vector<int64_t> leaves;
  bool wgmma;
  int columns, cluster;  // of a tile, which has 128 rows; tiles one below the other that are taken together
  int blocks;            // at most so many; 0: as many as run at once
};

// How tiles follow each other: segment after segment, each rank beginning with another, in a segment as matmul_sm90.cuh walks.
struct ProductWalk {
  int first[MOST_RANKS + 1];  // tiles (of `tile_rows` rows) of the segments walked before
  int start, columns;         // the segment walked first; tiles side by side
  int begin, end;             // of the tiles, those of this launch
};
ProductWalk product_walk(const Peers& peers, const ProductCall& call, int tile_rows, int only);

// Launches it: stage `only` of two, between which all ranks meet, or both (-1).
void launch_product(const Peers& peers, const ProductCall& call, int only);
// What must not wait until peers do: kernels and working memory are there from then on.
void prepare_product_mma(const ProductCall& call);
void prepare_product_wgmma(const ProductCall& call);
void launch_product_mma(const Peers& peers, const ProductCall& call, int only);
void launch_product_wgmma(const Peers& peers, const ProductCall& call, int only);

}  // namespace plait
