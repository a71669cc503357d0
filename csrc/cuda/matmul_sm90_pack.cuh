// Kernels around the wgmma kernel: copies of operands that TMA cannot read as they lie, and the merge of leaves that were
// summed apart.
#pragma once
#include "cuda/matmul_sm90.cuh"
#include "cuda/ptx.cuh"

namespace plait {

// The rows or, where k_rows is false, columns of `from` that are k in [begin, end) become those from `to_begin` on, in parts of
// `period`, each padded with zeros to a multiple of 16.
struct PackArguments {
  const bfloat16* from;
  int64_t from_stride;
  bfloat16* to;
  int64_t to_stride;
  bool k_rows;
  int64_t other, begin, end, to_begin, packed, period;  // other: columns or rows that are copied as they are
};

inline int64_t packed_length(int64_t length, int64_t period) {
  const auto padded = [](int64_t x) { return (x + STEP_K - 1) / STEP_K * STEP_K; };
  return period && period < length ? length / period * padded(period) + padded(length % period) : padded(length);
}

__global__ void __launch_bounds__(256) pack_kernel(const __grid_constant__ PackArguments g) {
  const int64_t width = g.k_rows ? g.other : g.packed, step = int64_t(gridDim.x) * blockDim.x;
  const int64_t padded = (g.period + STEP_K - 1) / STEP_K * STEP_K;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < g.packed * g.other; i += step) {
    const int64_t row = i / width, column = i - row * width;
    const int64_t x = g.k_rows ? row : column, part = x / padded, in_part = x - part * padded;
    const int64_t k = g.begin + part * g.period + in_part;
    bfloat16 value = {0};
    if (in_part < g.period && k < g.end) value = g.from[g.k_rows ? k * g.from_stride + column : row * g.from_stride + k];
    g.to[g.k_rows ? (g.to_begin + row) * g.to_stride + column : row * g.to_stride + g.to_begin + column] = value;
  }
}

// Each element's leaves, which lie in g.stack, through the tree; what is pending goes to the place of a leaf that is done.
__global__ void __launch_bounds__(256) merge_leaves_kernel(const __grid_constant__ WgmmaArguments g) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x, leaf_stride = g.m * g.stack_stride;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < int64_t(g.m) * g.n; i += step) {
    const int64_t row = i / g.n, column = i - row * g.n;
    float* const part = g.stack + row * g.stack_stride + column;
    float* const out = static_cast<float*>(g.data) + row * g.row_stride + column;
    int top = g.slot, floor = g.slot;
    for (int leaf = 0; leaf < g.leaves; leaf++) {
      const LeafStep s = leaf_step(g, leaf);
      float sum = part[leaf * leaf_stride];
      for (int merge = 0; merge < s.merges; merge++) {
        top--;
        if (top < floor) floor = top, sum = out[top * g.slot_stride] + sum;
        else sum = part[(top - floor) * leaf_stride] + sum;
      }
      if (s.pending) {
        part[(top - floor) * leaf_stride] = sum;
      } else {
        if (g.bias)
          sum += g.bias_dtype == DType::float32 ? static_cast<const float*>(g.bias)[column]
                                                : to_float(static_cast<const bfloat16*>(g.bias)[column]);
        if (g.out_dtype == DType::float32)
          out[top * g.slot_stride] = sum;
        else
          static_cast<bfloat16*>(g.data)[row * g.row_stride + column] = rounded(sum);
        if (g.after.kind != After::nothing) finish_part<1>(g.after, {row, column, 1, 1, 0, 1});
      }
      top++;
    }
  }
}

// Steps of leaves that the arguments have no room for.
struct StepsChunk {
  int count;
  LeafStep steps[256];
};
__global__ void __launch_bounds__(256) steps_kernel(const __grid_constant__ StepsChunk chunk, LeafStep* to) {
  if (int(threadIdx.x) < chunk.count) to[threadIdx.x] = chunk.steps[threadIdx.x];
}

}  // namespace plait
