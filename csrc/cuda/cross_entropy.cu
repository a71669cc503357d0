// Softmax cross-entropy over a sharded vocabulary: a block takes a row, its threads packs of eight columns. Statistics read a
// row once: thread t of 256 keeps (peak, sum of exp(logit - peak)) of packs t, t + 256, ..., a pack's eight terms added as
// a tree; thread t merges thread t + 16 of its warp, then t + 8, + 4, + 2, + 1, and the first warp merges the others in
// the same way. The order depends on nothing but the columns of the shard. Merges, losses and gradients have the CPU's bits.
#include "core/cross_entropy.hpp"
#include "core/ops.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/warp.cuh"

namespace plait {
namespace {

constexpr int THREADS = 256;
constexpr int COLUMNS = 8;  // of a pack

// Columns i ... i + 8 of a row of n; those beyond it are -infinity.
template <bool WIDE, class T>
__device__ __forceinline__ void load_columns(const T* row, int64_t i, int64_t n, float (&x)[COLUMNS]) {
  if (WIDE && i + COLUMNS <= n) {
    load_pack(row + i, x);
  } else {
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) x[k] = i + k < n ? to_float(row[i + k]) : -math::INF;
  }
}

__device__ __forceinline__ void add_pack(const float (&x)[COLUMNS], float& peak, float& sum) {
  float most = peak;
#pragma unroll
  for (int k = 0; k < COLUMNS; k++) most = fmaxf(most, x[k]);  // skips NaN
  if (most > peak) {
    sum *= math::exp_finite(peak - most);  // 0 at first: peak is -infinity
    peak = most;
  }
  const float base = base_of(peak);
  float e[COLUMNS];
#pragma unroll
  for (int k = 0; k < COLUMNS; k++) e[k] = math::exp_finite(x[k] - base);  // at most 1, or NaN
#pragma unroll
  for (int half = COLUMNS / 2; half > 0; half /= 2)
#pragma unroll
    for (int k = 0; k < half; k++) e[k] += e[k + half];
  sum += e[0];
}

// Thread 0 of the warp gets them.
__device__ __forceinline__ void merge_warp(float& peak, float& sum) {
#pragma unroll
  for (int far = WARP / 2; far > 0; far /= 2) {
    const float upper_peak = __shfl_down_sync(ALL_LANES, peak, far), upper_sum = __shfl_down_sync(ALL_LANES, sum, far);
    merge_sums(peak, sum, upper_peak, upper_sum);
  }
}

// real: columns that are no padding.
template <bool WIDE, class T>
__global__ void __launch_bounds__(THREADS)
    statistics_kernel(const T* logits, int64_t stride, int64_t real, const int32_t* targets, int64_t first_column,
                      int64_t vocabulary, float* peak, float* sum, float* target_logit, uint32_t* fault) {
  __shared__ float peaks[THREADS / WARP], sums[THREADS / WARP];
  const int64_t r = blockIdx.x;
  const T* row = logits + r * stride;
  float top = -math::INF, total = 0.0f;
#pragma unroll 2
  for (int64_t i = int64_t(threadIdx.x) * COLUMNS; i < real; i += THREADS * COLUMNS) {
    float x[COLUMNS];
    load_columns<WIDE>(row, i, real, x);
    add_pack(x, top, total);
  }
  merge_warp(top, total);
  const int lane = int(threadIdx.x) % WARP, warp = int(threadIdx.x) / WARP;
  if (lane == 0) peaks[warp] = top, sums[warp] = total;
  __syncthreads();
  if (warp) return;
  const bool one = lane < THREADS / WARP;
  top = one ? peaks[lane] : -math::INF, total = one ? sums[lane] : 0.0f;
  merge_warp(top, total);
  if (lane) return;
  peak[r] = top, sum[r] = total;
  const int64_t target = targets[r], column = target - first_column;
  if (target >= vocabulary) atomicCAS(fault, uint32_t(Fault::none), uint32_t(Fault::target_outside));
  if (target >= 0 && column >= 0 && column < real) target_logit[r] = to_float(row[column]);
}

constexpr int MOST = 512, DEPTH = 64;  // parts, and what their stack holds

struct Merges {
  int8_t of[MOST];
};

__global__ void __launch_bounds__(THREADS) merge_kernel(const float* parts, Merges merges, int n, int64_t rows, float* out) {
  const int64_t r = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (r >= rows) return;
  float peaks[DEPTH], sums[DEPTH];
  int top = 0;
  for (int i = 0; i < n; i++, top++) {
    peaks[top] = parts[2 * i * rows + r], sums[top] = parts[(2 * i + 1) * rows + r];
    for (int m = 0; m < merges.of[i]; m++, top--) merge_sums(peaks[top - 1], sums[top - 1], peaks[top], sums[top]);
  }
  out[r] = peaks[0], out[rows + r] = sums[0];
}

__global__ void __launch_bounds__(THREADS) loss_kernel(const float* peak, const float* sum, const float* target_logit,
                                                       const int32_t* targets, int64_t rows, float* losses) {
  const int64_t r = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (r < rows) losses[r] = loss_of(peak[r], sum[r], target_logit[r], targets[r]);
}

// A block takes the packs of a row that are blockIdx.y, blockIdx.y + gridDim.y ... in strips of THREADS.
template <bool WIDE, class T>
__global__ void __launch_bounds__(THREADS)
    backward_kernel(const T* logits, int64_t columns, int64_t real, const int32_t* targets, int64_t first_column,
                    const float* peak, const float* sum, float scale, T* grad) {
  const int64_t r = blockIdx.x, target = targets[r], column = target - first_column;
  const int64_t used = target < 0 ? 0 : real;
  const float base = base_of(peak[r]), inverse = scale / sum[r];
  const T* row = logits + r * columns;
  T* out = grad + r * columns;
#pragma unroll 2
  for (int64_t i = (int64_t(blockIdx.y) * THREADS + threadIdx.x) * COLUMNS; i < columns;
       i += int64_t(gridDim.y) * THREADS * COLUMNS) {
    float x[COLUMNS];
    load_columns<WIDE>(row, i, used, x);
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) {
      const float share = math::exp(x[k] - base) * inverse;
      x[k] = i + k < used ? share : 0.0f;
    }
    if (column >= i && column < i + COLUMNS && column < used) {
#pragma unroll
      for (int k = 0; k < COLUMNS; k++)
        if (i + k == column) x[k] -= scale;
    }
    if (WIDE && i + COLUMNS <= columns) {
      store_pack(out + i, x);
    } else {
#pragma unroll
      for (int k = 0; k < COLUMNS; k++) {
        const float one[1] = {x[k]};
        if (i + k < columns) store_pack(out + i + k, one);
      }
    }
  }
}

}  // namespace

void cross_entropy_statistics(const ConstArray& logits, const ConstArray& targets, int64_t first_column, int64_t vocabulary,
                              const Array& peak, const Array& sum, const Array& target_logit) {
  const At at = PLAIT_AT("cross_entropy_statistics");
  check_cross_entropy_rows(at.kernel, logits, targets, peak, sum);
  const int64_t rows = logits.shape[0], stride = logits.strides[0];
  expect_array(at.kernel, "target_logit", target_logit, DType::float32, {rows});
  PLAIT_FLOATS(logits.dtype, at.kernel, [&](auto zero) {
    using T = decltype(zero);
    launch(at, pack_aligned<T>(logits.data, stride) ? statistics_kernel<true, T> : statistics_kernel<false, T>,
           {unsigned(rows), THREADS}, logits.as<T>(), stride, real_columns(first_column, logits.shape[1], vocabulary),
           targets.as<int32_t>(), first_column, vocabulary, peak.as<float>(), sum.as<float>(), target_logit.as<float>(),
           fault_word());
  });
}

void cross_entropy_merge(const ConstArray& parts, const std::vector<int>& merges, const Array& out) {
  const At at = PLAIT_AT("cross_entropy_merge");
  check_cross_entropy_merge(parts, merges, out, DEPTH);
  PLAIT_CHECK(merges.size() <= size_t(MOST), at.kernel, "merges at most ", MOST, " parts on a GPU, got ", merges.size());
  Merges counts = {};
  std::copy(merges.begin(), merges.end(), counts.of);
  const int64_t rows = parts.shape[2];
  launch(at, merge_kernel, {unsigned((rows + THREADS - 1) / THREADS), THREADS}, parts.as<float>(), counts, int(merges.size()),
         rows, out.as<float>());
}

void cross_entropy_loss(const ConstArray& peak, const ConstArray& sum, const ConstArray& target_logit,
                        const ConstArray& targets, const Array& losses) {
  check_cross_entropy_loss(peak, sum, target_logit, targets, losses);
  const int64_t rows = losses.shape[0];
  launch(PLAIT_AT("cross_entropy_loss"), loss_kernel, {unsigned((rows + THREADS - 1) / THREADS), THREADS}, peak.as<float>(),
         sum.as<float>(), target_logit.as<float>(), targets.as<int32_t>(), rows, losses.as<float>());
}

void cross_entropy_backward(const ConstArray& logits, const ConstArray& targets, const ConstArray& peak, const ConstArray& sum,
                            int64_t first_column, int64_t vocabulary, float scale, const Array& grad_logits) {
  const At at = PLAIT_AT("cross_entropy_backward");
  check_cross_entropy_backward(logits, targets, peak, sum, grad_logits);
  const int64_t rows = logits.shape[0], columns = logits.shape[1];
  PLAIT_FLOATS(logits.dtype, at.kernel, [&](auto zero) {
    using T = decltype(zero);
    const bool packs = pack_aligned<T>(logits.data, columns) && pack_aligned<T>(grad_logits.data, columns);
    const int64_t strips = (columns + THREADS * COLUMNS - 1) / (THREADS * COLUMNS);
    // Long rows are shared by a few blocks, each of about four strips.
    const Grid grid{{unsigned(rows), unsigned(std::clamp<int64_t>(strips / 4, strips > 0, 65535))}, THREADS};
    launch(at, packs ? backward_kernel<true, T> : backward_kernel<false, T>, grid, logits.as<T>(), columns,
           real_columns(first_column, columns, vocabulary), targets.as<int32_t>(), first_column, peak.as<float>(),
           sum.as<float>(), scale, grad_logits.as<T>());
  });
}

}  // namespace plait
