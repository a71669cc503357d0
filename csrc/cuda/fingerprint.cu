// What tells whether two ranks hold the same bits: sums modulo 2^64, added by atomics, as their order changes nothing.
#include "core/fingerprint.hpp"
#include "core/ops.hpp"
#include "cuda/launch.cuh"
#include "cuda/warp.cuh"

namespace plait {
namespace {

constexpr int THREADS = 256;

using Counter = unsigned long long;  // what atomicAdd takes

__device__ __forceinline__ void add_to(Counter* total, uint64_t sum) {
#pragma unroll
  for (int far = 16; far > 0; far /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, far);
  if (threadIdx.x % WARP == 0 && sum) atomicAdd(total, Counter(sum));
}

template <class Bits>
__global__ void __launch_bounds__(THREADS) fingerprint_kernel(const Bits* x, int64_t n, uint64_t first, Counter* total) {
  const int64_t step = int64_t(gridDim.x) * THREADS;
  uint64_t sum = 0;
#pragma unroll 4
  for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < n; i += step) sum += mixed_at(first + uint64_t(i), x[i]);
  add_to(total, sum);
}

// A block takes whole rows.
template <class Bits>
__global__ void __launch_bounds__(THREADS) weighted_kernel(const Bits* x, int64_t row_stride, const uint64_t* rows,
                                                           const uint64_t* columns, int64_t r, int64_t c, Counter* total) {
  uint64_t sum = 0;
  for (int64_t row = blockIdx.x; row < r; row += gridDim.x) {
    uint64_t of_row = 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < c; i += THREADS) of_row += columns[i] * mixed_bits(x[row * row_stride + i]);
    sum += rows[row] * of_row;
  }
  add_to(total, sum);
}

// The sum that start(total) leaves in device memory.
template <class Start>
uint64_t sum_of(const Start& start) {
  Counter* total = scratch<Counter>(1);
  PLAIT_CUDA(cudaMemsetAsync(total, 0, sizeof(Counter), stream()));
  start(total);
  uint64_t sum = 0;
  PLAIT_CUDA(cudaMemcpyAsync(&sum, total, sizeof sum, cudaMemcpyDeviceToHost, stream()));
  PLAIT_CUDA(cudaStreamSynchronize(stream()));
  return sum;
}

}  // namespace

uint64_t fingerprint(const ConstArray& x, int64_t first_index) {
  check_fingerprint(x);
  const int64_t n = x.size();
  const Grid grid{blocks_for(n, 4 * THREADS), THREADS};
  return sum_of([&](Counter* total) {
    const At at = PLAIT_AT("fingerprint");
    if (x.dtype == DType::float32)
      launch(at, fingerprint_kernel<uint32_t>, grid, static_cast<const uint32_t*>(x.data), n, uint64_t(first_index), total);
    else
      launch(at, fingerprint_kernel<uint16_t>, grid, static_cast<const uint16_t*>(x.data), n, uint64_t(first_index), total);
  });
}

uint64_t weighted_bits(const ConstArray& x, const ConstArray& rows, const ConstArray& columns) {
  check_weighted_bits(x, rows, columns);
  const int64_t r = x.shape[0], c = x.shape[1];
  auto a = static_cast<const uint64_t*>(rows.data), b = static_cast<const uint64_t*>(columns.data);
  const Grid grid{blocks_for(r, 1), THREADS};
  return sum_of([&](Counter* total) {
    const At at = PLAIT_AT("weighted_bits");
    if (size_of(x.dtype) == 4)
      launch(at, weighted_kernel<uint32_t>, grid, static_cast<const uint32_t*>(x.data), x.strides[0], a, b, r, c, total);
    else
      launch(at, weighted_kernel<uint16_t>, grid, static_cast<const uint16_t*>(x.data), x.strides[0], a, b, r, c, total);
  });
}

}  // namespace plait
