// Batch norm (Ioffe and Szegedy 2015), with the formulas of cpu/batch_norm.cpp. Sums over the rows of a batch are in the order
// of columns.cuh, with blocks of 1024 rows as its samples: the variance is of two passes, fma(d, d, sum) with d = x - mean.
#include <algorithm>

#include "core/batch_norm.hpp"
#include "core/ops.hpp"
#include "cuda/columns.cuh"

namespace plait {
namespace {

constexpr int64_t BLOCK = 1024, MOST_BLOCKS = 16384;  // rows of a block, blocks of a kernel

__device__ __forceinline__ float rstd_of(float variance, float epsilon) {
  return 1.0f / sqrtf(variance + epsilon);
}

// --- terms of the sums -----------------------------------------------------------------------------------
struct NoRow {};

struct ValueTerm {
  __device__ NoRow row(int64_t, int64_t) const { return {}; }
  __device__ void add(const float (&x)[1], const NoRow&, float (&sum)[1]) const { sum[0] += x[0]; }
};
struct DistanceTerm {
  const float* mean;
  __device__ NoRow row(int64_t, int64_t) const { return {}; }
  __device__ float column(int64_t c) const { return mean[c]; }
  __device__ void add(const float (&x)[1], const NoRow&, const float& center, float (&sum)[1]) const {
    const float d = x[0] - center;
    sum[0] = fma(d, d, sum[0]);
  }
};
// Sums of grad and of grad * xhat.
struct GradTerm {
  const float *mean, *variance;
  float epsilon;
  struct Column {
    float center, scale;
  };
  __device__ NoRow row(int64_t, int64_t) const { return {}; }
  __device__ Column column(int64_t c) const { return {mean[c], rstd_of(variance[c], epsilon)}; }
  __device__ void add(const float (&v)[2], const NoRow&, const Column& column, float (&sum)[2]) const {
    sum[0] += v[0];
    sum[1] = fma(v[0], (v[1] - column.center) * column.scale, sum[1]);
  }
};

// --- rows written ------------------------------------------------------------------------------------------
template <int WIDTH>
struct Channels {
  float center[WIDTH], scale[WIDTH];
  __device__ __forceinline__ Channels(const float* mean, const float* variance, float epsilon, int64_t c) {
#pragma unroll
    for (int k = 0; k < WIDTH; k++) center[k] = mean[c + k], scale[k] = rstd_of(variance[c + k], epsilon);
  }
};

// A thread keeps a pack of channels (threadIdx.x) and takes every so many rows (threadIdx.y).
template <int WIDTH, class T, class W>
__global__ void __launch_bounds__(256, 3)
    normalize_kernel(const T* x, const W* weight, const W* bias, const float* mean, const float* variance, float epsilon,
                     int64_t rows, int64_t channels, T* out) {
  const int64_t c = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH;
  if (c >= channels) return;
  const Channels<WIDTH> of(mean, variance, epsilon, c);
  float w[WIDTH], shift[WIDTH];
#pragma unroll
  for (int k = 0; k < WIDTH; k++) w[k] = to_float(weight[c + k]), shift[k] = to_float(bias[c + k]);
#pragma unroll 2
  for (int64_t r = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; r < rows; r += int64_t(gridDim.y) * blockDim.y) {
    float v[WIDTH];
    load_pack(x + r * channels + c, v);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) v[k] = fma((v[k] - of.center[k]) * of.scale[k], w[k], shift[k]);
    store_pack(out + r * channels + c, v);
  }
}

// means (2, C): of grad and of grad * xhat.
template <int WIDTH, class T, class W>
__global__ void __launch_bounds__(256)
    backward_kernel(const T* grad, const T* x, const W* weight, const float* mean, const float* variance, float epsilon,
                    const float* means, int64_t rows, int64_t channels, T* grad_x) {
  const int64_t c = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH;
  if (c >= channels) return;
  const Channels<WIDTH> of(mean, variance, epsilon, c);
  float factor[WIDTH], plain[WIDTH], product[WIDTH];
#pragma unroll
  for (int k = 0; k < WIDTH; k++) {
    factor[k] = to_float(weight[c + k]) * of.scale[k];
    plain[k] = means[c + k], product[k] = means[channels + c + k];
  }
#pragma unroll 2
  for (int64_t r = int64_t(blockIdx.y) * blockDim.y + threadIdx.y; r < rows; r += int64_t(gridDim.y) * blockDim.y) {
    float g[WIDTH], v[WIDTH];
    load_pack(grad + r * channels + c, g);
    load_pack(x + r * channels + c, v);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
      const float xhat = (v[k] - of.center[k]) * of.scale[k];
      v[k] = factor[k] * fma(-xhat, product[k], g[k] - plain[k]);
    }
    store_pack(grad_x + r * channels + c, v);
  }
}

// --- launchers ---------------------------------------------------------------------------------------------

// Rows [first, first + blocks * rows) of x (R, C) as (blocks, rows, C).
ConstArray blocks_of(const ConstArray& x, int64_t first, int64_t blocks, int64_t rows) {
  ConstArray view = x;
  const int64_t channels = x.shape[1];
  view.data = static_cast<const char*>(x.data) + first * channels * size_of(x.dtype);
  view.ndim = 3;
  view.shape[0] = blocks, view.shape[1] = rows, view.shape[2] = channels;
  view.strides[0] = rows * channels, view.strides[1] = channels, view.strides[2] = 1;
  return view;
}

int64_t partial_sums(const ConstArray& x, int sums) {
  return std::clamp<int64_t>(x.shape[0] / BLOCK, 1, MOST_BLOCKS) * sums * x.shape[1];
}

// out(k) = means over all rows; memory: partial_sums(x, SUMS) floats, or scratch.
template <class T, int INPUTS, int SUMS, class Term>
void mean_columns(const At& at, const ConstArray* const (&inputs)[INPUTS], const Term& term, float* const (&out)[SUMS],
                  float* memory = nullptr) {
  const int64_t rows = inputs[0]->shape[0], whole = rows / BLOCK * BLOCK;
  int64_t done = 0;
  do {  // whole blocks, then one that is shorter
    const int64_t blocks = done < whole ? std::min(MOST_BLOCKS, (whole - done) / BLOCK) : 1;
    const int64_t length = done < whole ? BLOCK : rows - done, next = done + blocks * length;
    ConstArray views[INPUTS];
    const ConstArray* of[INPUTS];
    for (int a = 0; a < INPUTS; a++) views[a] = blocks_of(*inputs[a], done, blocks, length), of[a] = &views[a];
    sum_columns<T>(at, of, term, done > 0, out, next == rows ? float(rows) : 1.0f, memory);
    done = next;
  } while (done < rows);
}

struct RowsGrid {
  Grid grid;
  bool wide;
};
template <class T>
RowsGrid rows_grid(int64_t rows, int64_t channels, std::initializer_list<const void*> arrays) {
  RowsGrid found;
  found.wide = true;
  for (const void* data : arrays) found.wide = found.wide && pack_aligned<T>(data, channels);
  const int64_t packs = found.wide ? channels / PACK<T> : channels;
  unsigned x = 1;
  while (x < 32 && x < packs) x *= 2;
  const unsigned y = 256 / x, strips = unsigned((packs + x - 1) / x);
  found.grid = {{strips, std::min(65535u, blocks_for(rows, y))}, {x, y}};
  return found;
}

}  // namespace

void batch_norm_forward(const ConstArray& x, const ConstArray& weight, const ConstArray& bias, float epsilon, bool training,
                        const Array& mean, const Array& variance, const Array& out) {
  const At at = PLAIT_AT("batch_norm_forward");
  check_batch_norm_forward(x, weight, bias, training, mean, variance, out);
  const int64_t rows = x.shape[0], channels = x.shape[1];
  PLAIT_FLOATS(weight.dtype, at.kernel, [&](auto zero_w) {
    PLAIT_FLOATS(x.dtype, at.kernel, [&](auto zero) {
      using T = decltype(zero);
      using W = decltype(zero_w);
      if (training) {
        mean_columns<T>(at, {&x}, ValueTerm{}, {mean.as<float>()});
        mean_columns<T>(at, {&x}, DistanceTerm{mean.as<float>()}, {variance.as<float>()});
      }
      const RowsGrid shape = rows_grid<T>(rows, channels, {x.data, out.data});
      launch(at, shape.wide ? normalize_kernel<PACK<T>, T, W> : normalize_kernel<1, T, W>, shape.grid, x.as<T>(),
             weight.as<W>(), bias.as<W>(), mean.as<float>(), variance.as<float>(), epsilon, rows, channels, out.as<T>());
    });
  });
}

void batch_norm_backward(const ConstArray& grad, const ConstArray& x, const ConstArray& weight, const ConstArray& mean,
                         const ConstArray& variance, float epsilon, const Array& grad_x) {
  const At at = PLAIT_AT("batch_norm_backward");
  check_batch_norm_backward(grad, x, weight, mean, variance, grad_x);
  const int64_t rows = x.shape[0], channels = x.shape[1];
  const float *center = mean.as<float>(), *spread = variance.as<float>();
  PLAIT_FLOATS(weight.dtype, at.kernel, [&](auto zero_w) {
    PLAIT_FLOATS(x.dtype, at.kernel, [&](auto zero) {
      using T = decltype(zero);
      using W = decltype(zero_w);
      float* means = scratch<float>(2 * channels + partial_sums(x, 2));
      mean_columns<T>(at, {&grad, &x}, GradTerm{center, spread, epsilon}, {means, means + channels}, means + 2 * channels);
      const RowsGrid shape = rows_grid<T>(rows, channels, {grad.data, x.data, grad_x.data});
      launch(at, shape.wide ? backward_kernel<PACK<T>, T, W> : backward_kernel<1, T, W>, shape.grid, grad.as<T>(), x.as<T>(),
             weight.as<W>(), center, spread, epsilon, means, rows, channels, grad_x.as<T>());
    });
  });
}

void batch_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& mean, const ConstArray& variance,
                                float epsilon, bool accumulate, const Array& grad_weight, const Array& grad_bias) {
  const At at = PLAIT_AT("batch_norm_backward_weight");
  check_batch_norm_backward_weight(grad, x, mean, variance, grad_weight, grad_bias);
  PLAIT_FLOATS(x.dtype, at.kernel, [&](auto zero) {
    sum_columns<decltype(zero)>(at, {&grad, &x}, GradTerm{mean.as<float>(), variance.as<float>(), epsilon}, accumulate,
                                {grad_bias.as<float>(), grad_weight.as<float>()});
  });
}

}  // namespace plait
