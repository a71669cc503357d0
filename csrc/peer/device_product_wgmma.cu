// Products whose rows belong to several ranks, on wgmma: the warps beside the one that loads send rows.
#include <algorithm>

#include "core/tree.hpp"
#include "cuda/launch.cuh"
#include "cuda/matmul_sm90_kernel.cuh"
#include "cuda/tensor_map.hpp"
#include "peer/device_product.cuh"

namespace plait {
namespace {

static_assert(TILE_M == 128, "units are of tiles of 128 rows");
constexpr int SENDERS = GROUP - 32, SENDERS_BARRIER = 1 + CONSUMERS;  // threads; a named barrier of theirs

struct ProductItem : WgmmaItem {  // row: of the whole product
  ProductTile tile;
};

// The part of Alone that both have.
template <class Base>
struct OnWgmma : Base {
  static constexpr int HELD = 8;  // what else the kernel does takes registers
  static constexpr int LOADING = 56, MULTIPLYING = 224;
  __device__ __forceinline__ int begin() const { return this->walk.begin; }
  __device__ __forceinline__ int end(int) const { return this->walk.end; }
  template <int N>
  __device__ __forceinline__ ProductItem item(const WgmmaArguments& g, int item, unsigned rank) const {
    ProductItem w;
    w.tile = product_tile(this->walk, this->p.size, item, g.cluster, rank, N);
    w.row = this->task.bounds[w.tile.segment] + w.tile.row, w.column = w.tile.column;
    w.first_leaf = 0, w.last_leaf = g.leaves;
    return w;
  }
  __device__ __forceinline__ int rows_end(const WgmmaArguments&, const ProductItem& w) const {
    return this->task.bounds[w.tile.segment + 1];
  }
};

struct WgmmaSums : OnWgmma<SumRows> {
  static constexpr int WIDE = WIDE_SUMS;
  template <int N>
  __device__ __forceinline__ void give(const WgmmaArguments& g, const ProductItem& w, int consumer,
                                       const float (&sum)[N / 2]) const {
    const int q = w.tile.segment, row = w.tile.row + consumer * 64;
    Corner at = corner(w, consumer);
    at.row -= task.bounds[q];
    write_sums<N>(task.rows(q), g.n, at, part(q, p.rank), g.n, true, sum);
    given(q, w.tile.number * CONSUMERS + consumer, row, 64, w.column, N, int(threadIdx.x) % GROUP, GROUP,
          [&] { sync_some(1 + consumer, GROUP); });
  }
};

struct WgmmaGather : OnWgmma<GatherRows> {
  static constexpr int WIDE = WIDE_GATHER;
  CUtensorMap own;  // x; the arguments' map of A is that of all rows

  // By the thread that loads.
  __device__ __forceinline__ RowsOfA rows_of_a(const WgmmaArguments& g, const ProductItem& w) const {
    if (w.tile.segment == p.rank) return {&own, w.tile.row};
    if (waits) await(w.tile.segment, w.tile.row, 0, 1);
    fence_async_global();
    return {&g.a, w.row};
  }
  __device__ __forceinline__ void feed(const WgmmaArguments&) const {
    const int count = units();
    for (int unit = int(blockIdx.x); unit < count; unit += int(gridDim.x))
      send(unit, int(threadIdx.x) - 32, SENDERS, [] { sync_some(SENDERS_BARRIER, SENDERS); });
  }
};

constexpr At AT = PLAIT_AT("a product of several ranks' rows, wgmma");

template <int N>
Grid grid_of(const ProductCall& c, int blocks) {
  Grid grid{unsigned(blocks), WGMMA_THREADS, WgmmaShared<N>::BYTES, unsigned(c.cluster)};
  grid.together = true;  // all blocks run at once, or one would wait for a peer's that waits for a place
  return grid;
}

template <int N, class Spread>
int most_blocks(const ProductCall& c) {
  const int resident = resident_blocks(AT, wgmma_kernel<N, true, false, Spread>, grid_of<N>(c, c.cluster));
  return c.blocks ? std::min(resident, c.blocks) : resident;
}

template <int N, class Spread>
void start(const ProductCall& c, const WgmmaCall& call, const Spread& spread) {
  const int most = std::min(call.blocks, most_blocks<N, Spread>(c)) / c.cluster, items = spread.walk.end - spread.walk.begin;
  const Grid grid = grid_of<N>(c, std::max(1, std::min(most, items)) * c.cluster);
  launch(AT, wgmma_kernel<N, true, false, Spread>, grid, call.arguments, spread);
}

template <class Spread>
void start(const ProductCall& c, const WgmmaCall& call, const Spread& spread) {
  c.columns == 128 ? start<128>(c, call, spread) : start<Spread::WIDE>(c, call, spread);
}

// a: what the map of A describes.
WgmmaCall call_of(const ProductCall& c, const void* a, void* out, int64_t items) {
  const ProductTask& task = c.task;
  const std::vector<int> merges = tree_merges(int64_t(c.leaves.size()) - 1);
  MatmulProblem p = {};
  p.a = static_cast<const bfloat16*>(a), p.b = static_cast<const bfloat16*>(c.w);
  p.row_stride_a = task.k, p.row_stride_b = task.n;
  p.m = task.m, p.n = task.n, p.k = task.k;
  p.leaves = &c.leaves, p.merges = &merges;
  p.out = out, p.row_stride_out = task.n;
  p.out_dtype = !task.sums && task.half ? DType::bfloat16 : DType::float32;
  return wgmma_call(p, {c.columns, c.cluster, false}, items);
}

}  // namespace

void prepare_product_wgmma(const ProductCall& c) {
  call_of(c, c.x, c.task.out, int64_t(1) << 20);
  const bool narrow = c.columns == 128;
  if (c.task.sums)
    narrow ? most_blocks<128, WgmmaSums>(c) : most_blocks<WIDE_SUMS, WgmmaSums>(c);
  else
    narrow ? most_blocks<128, WgmmaGather>(c) : most_blocks<WIDE_GATHER, WgmmaGather>(c);
}

void launch_product_wgmma(const Peers& peers, const ProductCall& c, int only) {
  const ProductTask& task = c.task;
  char* const place = peers.bases[peers.rank] + task.places[peers.rank];
  const ProductWalk walk = product_walk(peers, c, TILE_M * c.cluster, only);
  WgmmaCall call = call_of(c, task.sums ? c.x : place, task.sums ? place : task.out, std::max(1, walk.end));
  if (task.sums) return start(c, call, WgmmaSums{{{peers, task, walk, only < 0}}});
  for (int q = 0; q < peers.size; q++)  // boxes of 64 rows go out whole
    call.arguments.by_tma = call.arguments.by_tma && task.rows(q) % (TILE_M * c.cluster) == 0;
  WgmmaGather spread = {{{peers, task, walk, only != 1, only < 0}}, {}};
  const int own = task.rows(peers.rank);
  if (own) spread.own = tensor_map({task.x, {task.k, own, 1}, {task.k, task.k}, {TILE_K, TILE_M, 1}});
  start(c, call, spread);
}

}  // namespace plait
