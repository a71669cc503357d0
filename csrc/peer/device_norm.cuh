// Layer norm or RMS norm of rows that this block has just stored, or has seen stored: csrc/cuda/norm.cu's bits.
#pragma once
#include "core/norm.hpp"
#include "cuda/row.cuh"
#include "peer/device_task.hpp"

namespace plait {

template <int WIDTH>
__device__ __forceinline__ void load_weight(const void* from, bool float32, int64_t i, int64_t n, float (&x)[2]) {
  if (float32)
    load_two<WIDTH>(static_cast<const float*>(from), i, n, x);
  else
    load_two<WIDTH>(static_cast<const bfloat16*>(from), i, n, x);
}

// A warp takes a row; WIDTH 1 where pairs do not lie on a boundary.
template <class Y, int WIDTH>
__device__ __forceinline__ void norm_row(const NormTask& norm, const Y* x, int64_t r) {
  const int64_t n = norm.channels;
  float m = 0.0f, sum[1];
  const auto at = [&](int64_t i, float (&v)[2]) { load_two<WIDTH>(x, i, n, v); };
  if (norm.centred) {
    sum_row<0, WIDTH>(n, [&](int, int64_t i, float (&t)[1][2]) { at(i, t[0]); }, sum);
    m = sum[0] / float(n);
  }
  sum_row<0, WIDTH>(
      n,
      [&](int, int64_t i, float (&t)[1][2]) {
        float v[2];
        at(i, v);
#pragma unroll
        for (int k = 0; k < 2; k++) t[0][k] = (v[k] - m) * (v[k] - m);
      },
      sum);
  const float scale = 1.0f / sqrtf(sum[0] / float(n) + norm.epsilon);
  each_pair<0>(n, [&](int, int64_t i) {
    float v[2], w[2], b[2];
    at(i, v);
    load_weight<WIDTH>(norm.weight, norm.float32_weight, i, n, w);
    if (norm.centred) load_weight<WIDTH>(norm.bias, norm.float32_weight, i, n, b);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const float y = normalised(v[k], m, scale);
      v[k] = norm.centred ? fma(y, w[k], b[k]) : y * w[k];
    }
    store_two<WIDTH>(static_cast<Y*>(norm.normed) + r * n, i, n, v);
  });
  if (threadIdx.x % WARP == 0) {
    if (norm.centred) norm.mean[r] = m;
    norm.rstd[r] = scale;
  }
}

// Rows [first, last) of out (rows, channels).
template <class Y>
__device__ __forceinline__ void norm_rows(const NormTask& norm, const char* out, int64_t first, int64_t last) {
  const Y* const x = reinterpret_cast<const Y*>(out);
  const uintptr_t weights = norm.float32_weight ? 8 : 4;
  const bool pairs = norm.channels % 2 == 0 &&
                     (reinterpret_cast<uintptr_t>(out) | reinterpret_cast<uintptr_t>(norm.normed)) % (2 * sizeof(Y)) == 0 &&
                     (reinterpret_cast<uintptr_t>(norm.weight) | reinterpret_cast<uintptr_t>(norm.bias)) % weights == 0;
  for (int64_t r = first + threadIdx.x / WARP; r < last; r += blockDim.x / WARP) {
    if (pairs)
      norm_row<Y, 2>(norm, x + r * norm.channels, r);
    else
      norm_row<Y, 1>(norm, x + r * norm.channels, r);
  }
}

}  // namespace plait
