// Products whose rows belong to several ranks, on mma.sync.
#include <algorithm>

#include "core/tree.hpp"
#include "cuda/matmul_launch.cuh"
#include "cuda/matmul_mma.cuh"
#include "peer/device_product.cuh"

namespace plait {
namespace {

using Tile = LargeTile;
constexpr int SIDE = Tile::ROWS;
static_assert(SIDE == 128, "units are of tiles of 128 rows");

// What comes before and after a tile is called: it takes no registers beside those of the sums.
template <class Spread>
__device__ __forceinline__ ProductTile tile_of(const Spread& spread, int item) {
  return product_tile(spread.walk, spread.p.size, item, 1, 0, SIDE);
}

// With each of its own tiles a rank sends a share of what its peers wait for.
__device__ PLAIT_APART void send_share(const GatherRows& spread, int item) {
  const int tiles = spread.walk.first[1], units = spread.units();
  for (int unit = int(int64_t(item) * units / tiles); unit < int(int64_t(item + 1) * units / tiles); unit++)
    spread.send(unit, int(threadIdx.x), Tile::THREADS, [] { __syncthreads(); });
}

__device__ PLAIT_APART void give_tile(const SumRows& spread, int item) {
  const ProductTile tile = tile_of(spread, item);
  spread.given(tile.segment, tile.number, tile.row, SIDE, tile.column, SIDE, int(threadIdx.x), Tile::THREADS,
               [] { __syncthreads(); });
}

// x (rows, k) and w (k, n) as they lie; what leaves merge with is kept as in mma_kernel.
template <class Spread>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    mma_product_kernel(const __grid_constant__ MmaCall call, const __grid_constant__ Spread spread) {
  if (!spread.starts()) return;
  const SharedAddress shared = shared_address(dynamic_shared<unsigned char>());
  float2* const kept = call.kept + int64_t(blockIdx.x) * call.depth * Tile::PAIRS * Tile::THREADS + threadIdx.x;
  const ProductTask& task = spread.task;
  const ProductWalk& walk = spread.walk;
  for (int item = walk.begin + int(blockIdx.x); item < walk.end; item += int(gridDim.x)) {
    const ProductTile tile = tile_of(spread, item);
    const bool own = tile.segment == spread.p.rank;
    MatmulOut out = call.out;
    out.m = task.rows(tile.segment);
    const bfloat16* a = call.a;
    if constexpr (Spread::SUMS) {
      a += int64_t(task.bounds[tile.segment]) * task.k;
      out.data = spread.part(tile.segment, spread.p.rank);
    } else {
      out.data = task.out + int64_t(task.bounds[tile.segment]) * task.n * (task.half ? 2 : 4);
      if (own) {
        send_share(spread, item);
      } else {
        a = reinterpret_cast<const bfloat16*>(spread.p.bases[spread.p.rank] + task.places[spread.p.rank]) +
            int64_t(task.bounds[tile.segment]) * task.k;
        if (spread.waits) spread.await(tile.segment, tile.row, int(threadIdx.x), Tile::THREADS);
        __syncthreads();
      }
    }
    Turn turn;
    turn.row = tile.row, turn.column = tile.column, turn.first_leaf = 0, turn.last_leaf = call.leaves.first[1];
    PanelCopy<SIDE, true, Tile::THREADS> copy_a(a, call.stride_a, turn.row, out.m, shared);
    PanelCopy<SIDE, false, Tile::THREADS> copy_b(call.b, call.stride_b, turn.column, out.n, shared + Tile::PANEL);
    mma_turn<Tile, true, false>(call.leaves, turn, call.period, shared, copy_a, copy_b, out, out, false, 0, kept);
    if constexpr (Spread::SUMS) give_tile(spread, item);
  }
}

constexpr At AT = PLAIT_AT("a product of several ranks' rows, mma.sync");

Grid grid_of(unsigned blocks) {
  Grid grid{blocks, Tile::THREADS, size_t(Tile::SHARED)};
  grid.together = true;  // all blocks run at once, or one would wait for a peer's that waits for a place
  return grid;
}

template <class Spread>
int most_blocks(const ProductCall& c) {
  const int resident = resident_blocks(AT, mma_product_kernel<Spread>, grid_of(1));
  return c.blocks ? std::min(resident, c.blocks * Tile::BLOCKS) : resident;
}

LeafPlan plan_of(const ProductCall& c) {
  const std::vector<int> merges = tree_merges(int64_t(c.leaves.size()) - 1);
  return plan_leaves(c.leaves, merges, 0, merges.size());
}

float2* room(int blocks, int depth) { return scratch<float2>(int64_t(blocks) * depth * Tile::PAIRS * Tile::THREADS); }

template <class Spread>
void run(const ProductCall& c, const Spread& spread, MmaCall& call) {
  const int blocks = std::max(1, std::min(spread.walk.end - spread.walk.begin, most_blocks<Spread>(c)));
  call.kept = room(blocks, call.depth);
  launch(AT, mma_product_kernel<Spread>, grid_of(unsigned(blocks)), call, spread);
}

}  // namespace

void prepare_product_mma(const ProductCall& c) {
  if (c.task.sums)
    room(most_blocks<SumRows>(c), plan_of(c).depth);
  else
    most_blocks<GatherRows>(c);
}

void launch_product_mma(const Peers& peers, const ProductCall& c, int only) {
  const ProductTask& task = c.task;
  const LeafPlan plan = plan_of(c);
  MmaCall call = {};
  call.a = static_cast<const bfloat16*>(c.x), call.b = static_cast<const bfloat16*>(c.w);
  call.stride_a = task.k, call.stride_b = task.n, call.period = task.k;
  call.out = {nullptr, task.n, 0, task.m, task.n, nullptr, !task.sums && task.half, false, true, true};
  call.final = call.out, call.depth = plan.depth, call.leaves = plan.leaves;
  const ProductWalk walk = product_walk(peers, c, SIDE, only);
  if (task.sums)
    run(c, SumRows{peers, task, walk, only < 0}, call);
  else
    run(c, GatherRows{peers, task, walk, only != 1, only < 0}, call);
}

}  // namespace plait
