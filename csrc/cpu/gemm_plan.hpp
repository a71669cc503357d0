// In which order a matrix multiplication goes through k, and where its sums wait: no data here.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/gemm.hpp"
#include "cpu/gemm_tile.hpp"

namespace plait {

enum Init { ZERO, OUT, SLOT };

// Some k, packed at `begin` to `end` of the pass. Tiles start from ZERO, OUT or slot `slot`, merge
// with `merges` slots below it and go to the lowest of these. Slots below `stored` lie in out, as
// does the target if it is the last to go there.
struct Chunk {
  int64_t begin, end;
  int slot, init, merges, stored;
  bool last;
};

// k that are packed at one go, from `at` of the pass.
struct Run {
  int64_t k, length, at;
};

struct Pass {
  std::vector<Run> runs;
  std::vector<Chunk> chunks;
  int64_t depth = 0;  // how many elements are packed
};

struct Plan {
  std::vector<Pass> passes;
  int slots = 0;
};

// The same for every tile and thread. `longest`: elements packed along k in a pass.
Plan make_plan(const Gemm& g, const TileKernel& kernel, int64_t longest);

}  // namespace plait
