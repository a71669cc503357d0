// Which tile, cluster and cut a matmul gets: the least time by a model of a multiprocessor's cycles.
#include <algorithm>
#include <cmath>

#include "cuda/matmul_sm90.cuh"
#include "cuda/matmul_sm90.hpp"

namespace plait {
namespace {

// Bytes a cycle: what L2 gives one multiprocessor, what it gives them all, what memory takes.
constexpr double L2_EACH = 64, L2_ALL = 4096, MEMORY = 2048;
constexpr double TURN = 500, LAUNCH = 6000;  // cycles from one tile to the next besides its bytes; of one more kernel

double cycles(const MatmulProblem& p, const WgmmaPlan& plan, int multiprocessors) {
  const double n = plan.columns, leaves = double(p.leaves->size() - 1);
  const double tiles = double((p.m + TILE_M * plan.cluster - 1) / (TILE_M * plan.cluster)) *
                       double((p.n + plan.columns - 1) / plan.columns);
  const double items = plan.apart ? tiles * leaves : tiles, at_once = double(multiprocessors / plan.cluster);
  const double busy = std::min(items, at_once) * plan.cluster;
  int64_t longest = 0;
  for (size_t i = 1; i < p.leaves->size(); i++) longest = std::max(longest, (*p.leaves)[i] - (*p.leaves)[i - 1]);
  const double depth = double(plan.apart ? longest : p.k) / TILE_K;
  const double loaded = (TILE_M + n / plan.cluster) * TILE_K * 2;
  const double k_tile = std::max(n * 4, std::max(loaded / L2_EACH, loaded * busy / L2_ALL));
  const double written = TILE_M * n * (p.out_dtype == DType::float32 || plan.apart ? 4 : 2) * (p.accumulate ? 2 : 1);
  const double moved = 1 - held_sums(plan.columns) / (n / 2) / (leaves > 2 ? 2 : 1);  // of what is pending
  const double pending = plan.apart ? 0 : (leaves - 1) * TILE_M * n * 8 * moved;
  double total = std::ceil(items / at_once) * (TURN + depth * k_tile + (written + pending) / L2_EACH);
  if (plan.apart) total += LAUNCH + double(p.m) * double(p.n) * 4 * (leaves + 1) / MEMORY;
  return total;
}

}  // namespace

WgmmaPlan wgmma_plan(const MatmulProblem& p, int multiprocessors) {
  WgmmaPlan best = {};
  double least = INFINITY;
  for (int columns : {256, 192, 128, 64})
    for (int cluster : {2, 1})
      for (bool apart : {false, true}) {
        if ((cluster == 2 && (p.m <= TILE_M || multiprocessors < 2)) || (apart && p.leaves->size() <= 2)) continue;
        const WgmmaPlan plan = {columns, cluster, apart};
        const double time = cycles(p, plan, multiprocessors);
        if (time < least) best = plan, least = time;
      }
  return best;
}

}  // namespace plait
