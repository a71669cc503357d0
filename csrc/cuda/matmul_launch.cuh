// How a product of matrices is shared out among blocks: tiles, and groups of leaves where tiles alone leave some idle.
#pragma once
#include <algorithm>

#include "cuda/epilogue.cuh"
#include "cuda/launch.cuh"
#include "cuda/matmul_out.cuh"
#include "cuda/matmul_walk.cuh"

namespace plait {

// out = the sums of groups of leaves, merged by `finish`; partial (groups, m, stride), 2 columns to a thread.
struct FinishCall {
  Leaf leaf[MOST_LEAVES];
  int groups;
  float* partial;
  MatmulOut out;
  int64_t stride;
  AfterCall after;
};
static __global__ void __launch_bounds__(256) finish_kernel(const __grid_constant__ FinishCall call) {
  struct Place {
    int64_t first_row, first_column;
    static constexpr int row(int) { return 0; }
    static constexpr int column(int) { return 0; }
    __device__ bool inside(const MatmulOut&) const { return false; }
    __device__ void store_half(const Sums<1, 1>&, const MatmulOut&) const {}
  };
  const int64_t across = (call.out.n + 1) / 2, step = int64_t(gridDim.x) * blockDim.x, size = call.out.m * call.stride;
  for (int64_t t = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; t < call.out.m * across; t += step) {
    const Place place{t / across, t % across * 2};
    float* const mine = call.partial + place.first_row * call.stride + place.first_column;
    int top = 0;
    for (int g = 0; g < call.groups; g++) {
      const Leaf& leaf = call.leaf[g];
      const float2 x = *reinterpret_cast<const float2*>(mine + g * size);
      Sums<1, 1> sum = {{{x.x, x.y}}};
      for (int m = 0; m < leaf.near; m++) {
        const float2 lower = *reinterpret_cast<const float2*>(mine + --top * size);
        sum[0][0][0] = lower.x + sum[0][0][0], sum[0][0][1] = lower.y + sum[0][0][1];
      }
      for (int m = leaf.far - 1; m >= 0; m--) load_sums<true, 1, 1>(sum, call.out, leaf.slot + m, place);
      if (leaf.kept)
        *reinterpret_cast<float2*>(mine + top++ * size) = make_float2(sum[0][0][0], sum[0][0][1]);  // top <= g: read already
      else
        store_sums<1, 1>(sum, call.out, leaf.slot, place);
    }
    if (call.after.kind != After::nothing) finish_part<2>(call.after, {place.first_row, place.first_column, 1, 2, 0, 1});
  }
}

// What a kernel works with.
struct MatmulShare {
  LeafPlan plan;
  unsigned blocks;
  int64_t kept_bytes, partial_bytes, partial_stride;
};

// per_block: bytes of one block's sums; blocks: how many a multiprocessor holds.
inline MatmulShare share_out(const MatmulProblem& p, int64_t tiles, int64_t per_block, int blocks) {
  PLAIT_CHECK(p.leaves->back() <= LONGEST_SUM, "matmul", "sums of more than ", LONGEST_SUM,
              " terms are too long for a GPU, got ", p.leaves->back());
  constexpr int64_t MOST_PARTIAL = int64_t(256) << 20;
  const int64_t places = int64_t(device_properties().multiprocessors) * blocks, count = int64_t(p.merges->size());
  const int64_t stride = (p.n + 7) / 8 * 8, matrix = p.m * stride * 4;
  const int64_t groups = std::max<int64_t>(1, std::min({places / tiles, count, MOST_PARTIAL / matrix}));
  MatmulShare share = {};
  share.plan = plan_leaves(*p.leaves, *p.merges, p.slot, size_t((count + groups - 1) / groups));
  const int made = share.plan.leaves.groups;
  share.blocks = unsigned(std::min(places, tiles * made));
  share.kept_bytes = int64_t(share.blocks) * share.plan.depth * per_block;
  share.partial_stride = stride;
  share.partial_bytes = made > 1 ? made * matrix : 0;
  return share;
}

inline int64_t rounded_up(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// Where groups of leaves go: out itself, or partial sums.
inline MatmulOut out_of_groups(const MatmulShare& share, const MatmulOut& final, float* partial) {
  if (share.plan.leaves.groups == 1) return final;
  return {partial, share.partial_stride, final.m * share.partial_stride, final.m, final.n, nullptr, false, false, true, true};
}

// The epilogue of the kernel itself: where leaves are merged later it comes after that.
inline AfterCall after_of_groups(const MatmulShare& share, const MatmulProblem& p) {
  AfterCall after = after_call(p);
  if (share.plan.leaves.groups > 1) after.kind = After::nothing;
  return after;
}

inline void finish(const At& at, const MatmulShare& share, const MatmulOut& final, float* partial,
                   const AfterCall& after = {}) {
  if (share.plan.leaves.groups == 1) return;
  FinishCall call = {};
  std::copy(share.plan.finish.begin(), share.plan.finish.end(), call.leaf);
  call.groups = share.plan.leaves.groups, call.partial = partial, call.out = final, call.stride = share.partial_stride;
  call.after = after;
  launch(at, finish_kernel, {blocks_for(final.m * ((final.n + 1) / 2), 256), 256}, call);
}

}  // namespace plait
