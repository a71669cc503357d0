// The first maximum of each row, or the first NaN: a block takes a row, its threads packs of eight columns.
#include "core/argmax.hpp"
#include "core/ops.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/warp.cuh"

namespace plait {
namespace {

constexpr int THREADS = 256;
constexpr int COLUMNS = 8;  // of a pack

// Every thread of the warp gets it.
__device__ __forceinline__ Best best_of_warp(Best best) {
#pragma unroll
  for (int far = WARP / 2; far > 0; far /= 2) {
    Best other;
    other.value = __shfl_xor_sync(ALL_LANES, best.value, far);
    other.index = __shfl_xor_sync(ALL_LANES, best.index, far);
    if (best.behind(other)) best = other;
  }
  return best;
}

// WIDE: packs lie on boundaries of their size.
template <bool WIDE, class T>
__global__ void __launch_bounds__(THREADS)
    argmax_kernel(const T* __restrict__ x, int64_t stride, int columns, float* value, int32_t* index) {
  __shared__ float values[THREADS / WARP];
  __shared__ int32_t places[THREADS / WARP];
  const T* row = x + blockIdx.x * stride;
  Best best;
#pragma unroll 2
  for (int64_t i = int64_t(threadIdx.x) * COLUMNS; i < columns; i += THREADS * COLUMNS) {
    float v[COLUMNS];
    if (WIDE && i + COLUMNS <= columns) {
      load_pack(row + i, v);
    } else {
#pragma unroll
      for (int k = 0; k < COLUMNS; k++) v[k] = i + k < columns ? to_float(row[i + k]) : -math::INF;
    }
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) {
      const Best other{v[k], int32_t(i + k)};
      if (best.behind(other)) best = other;
    }
  }
  best = best_of_warp(best);
  const int lane = int(threadIdx.x) % WARP, warp = int(threadIdx.x) / WARP;
  if (lane == 0) values[warp] = best.value, places[warp] = best.index;
  __syncthreads();
  if (warp) return;
  best = Best{};
  if (lane < THREADS / WARP) best = Best{values[lane], places[lane]};
  best = best_of_warp(best);
  if (lane) return;
  value[blockIdx.x] = best.value;
  index[blockIdx.x] = columns ? best.index : 0;
}

}  // namespace

void argmax(const ConstArray& x, int64_t columns, const Array& value, const Array& index) {
  check_argmax(x, columns, value, index);
  const At at = PLAIT_AT("argmax");
  const int64_t rows = x.shape[0], stride = x.strides[0];
  PLAIT_FLOATS(x.dtype, at.kernel, [&](auto zero) {
    using T = decltype(zero);
    launch(at, pack_aligned<T>(x.data, stride, COLUMNS) ? argmax_kernel<true, T> : argmax_kernel<false, T>,
           {unsigned(rows), THREADS}, x.as<T>(), stride, int(columns), value.as<float>(), index.as<int32_t>());
  });
}

}  // namespace plait
