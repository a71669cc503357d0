// Sums and maxima over the lanes of a warp, in one fixed order.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace plait {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Every lane gets it.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int far = 16; far > 0; far /= 2) {
    const float other = __shfl_xor_sync(ALL_LANES, x, far);
    x = other > x ? other : x;
  }
  return x;
}

// A row's 64 partial sums (cpu/vec.hpp, sum_row: lane l has the elements l, l + 64, ...), two in each thread: those of lanes
// 2t and 2t + 1. Lane l adds lane l + 32, then l + 16, l + 8, l + 4, l + 2, l + 1. Every thread gets the sum.
__device__ __forceinline__ float fold_row(float even, float odd) {
#pragma unroll
  for (int far = 16; far > 0; far /= 2) {
    even += __shfl_xor_sync(ALL_LANES, even, far);
    odd += __shfl_xor_sync(ALL_LANES, odd, far);
  }
  return even + odd;
}

}  // namespace plait
