// Fragments of 16 x 8 of float32, as mma leaves them, on their way to memory or to the next product.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace plait {

// Four lanes have the eight columns of a fragment's row in pairs. w: of four fragments, this lane's pairs, rounded; it gets the
// whole row of fragment (lane % 4).
__device__ __forceinline__ uint4 gather_row(const uint32_t (&w)[4]) {
  const int q = int(threadIdx.x) % 4;
  const bool odd = q & 1, upper = q & 2;
  const uint32_t x = __shfl_xor_sync(ALL_LANES, odd ? w[0] : w[1], 1), y = __shfl_xor_sync(ALL_LANES, odd ? w[2] : w[3], 1);
  const uint32_t low0 = odd ? x : w[0], low1 = odd ? w[1] : x;    // fragment 0, odd lanes 1: of two lanes
  const uint32_t high0 = odd ? y : w[2], high1 = odd ? w[3] : y;  // fragment 2, odd lanes 3
  const uint32_t r0 = __shfl_xor_sync(ALL_LANES, upper ? low0 : high0, 2),
                 r1 = __shfl_xor_sync(ALL_LANES, upper ? low1 : high1, 2);
  return upper ? make_uint4(r0, r1, high0, high1) : make_uint4(low0, low1, r0, r1);
}

// Two fragments side by side, rounded to bfloat16, as the left operand of a product over their 16 columns.
__device__ __forceinline__ void as_left(uint32_t (&a)[4], const float (&first)[4], const float (&second)[4]) {
  a[0] = rounded_pair(first[0], first[1]), a[1] = rounded_pair(first[2], first[3]);
  a[2] = rounded_pair(second[0], second[1]), a[3] = rounded_pair(second[2], second[3]);
}

}  // namespace plait
