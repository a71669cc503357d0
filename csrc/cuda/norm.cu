// Layer norm and RMS norm: a warp takes a row, and gives the bits of cpu/norm.cpp. Gradients of the weights are sums over
// samples and positions in the order of columns.cuh.
#include "core/norm.hpp"
#include "core/ops.hpp"
#include "cuda/columns.cuh"
#include "cuda/row.cuh"

namespace plait {
namespace {

// mean is null for RMS norm; residual and stream where x itself is normed.
template <class T, class W, bool CENTRED, int PIECES, int WIDTH>
__global__ void __launch_bounds__(128, 3)
    forward_kernel(const T* x, const T* residual, const W* __restrict__ weight, const W* __restrict__ bias, float epsilon,
                   int64_t rows, int64_t channels, T* stream, T* out, float* mean, float* rstd) {
  const int64_t r = int64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (r >= rows) return;
  const int64_t first = r * channels;
  const Row<T, PIECES, WIDTH> row(x + first, channels, 0, residual ? residual + first : nullptr,
                                  residual ? stream + first : nullptr);
  float m = 0.0f, sum[1];
  if constexpr (CENTRED) {
    sum_row<PIECES, WIDTH>(channels, [&](int j, int64_t i, float (&t)[1][2]) { row.at(j, i, channels, t[0]); }, sum);
    m = sum[0] / float(channels);
  }
  sum_row<PIECES, WIDTH>(
      channels,
      [&](int j, int64_t i, float (&t)[1][2]) {
        float v[2];
        row.at(j, i, channels, v);
#pragma unroll
        for (int k = 0; k < 2; k++) {
          const float d = v[k] - m;
          t[0][k] = d * d;
        }
      },
      sum);
  const float scale = 1.0f / sqrtf(sum[0] / float(channels) + epsilon);
  each_pair<PIECES>(channels, [&](int j, int64_t i) {
    float v[2], w[2], b[2];
    load_two<WIDTH>(weight, i, channels, w);
    if constexpr (CENTRED) load_two<WIDTH>(bias, i, channels, b);
    row.at(j, i, channels, v);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const float y = normalised(v[k], m, scale);
      if constexpr (CENTRED)
        v[k] = fma(y, w[k], b[k]);
      else
        v[k] = y * w[k];
    }
    store_two<WIDTH>(out + r * channels, i, channels, v);
  });
  if (threadIdx.x % WARP == 0) {
    if constexpr (CENTRED) mean[r] = m;
    rstd[r] = scale;
  }
}

// grad_stream is null where x has no other use; grad_x may be it.
template <class T, class W, bool CENTRED, int PIECES, int WIDTH>
__global__ void __launch_bounds__(128, 3)
    backward_kernel(const T* grad, const T* grad_stream, const T* x, const W* __restrict__ weight, const float* mean,
                    const float* rstd, int64_t rows, int64_t channels, T* grad_x) {
  const int64_t r = int64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (r >= rows) return;
  const Row<T, PIECES, WIDTH> grads(grad + r * channels, channels, 0), row(x + r * channels, channels, 1);
  float m = 0.0f;
  if constexpr (CENTRED) m = mean[r];
  const float scale = rstd[r];
  const auto load = [&](int j, int64_t i, float (&g)[2], float (&y)[2]) {
    float w[2];
    load_two<WIDTH>(weight, i, channels, w);
    grads.at(j, i, channels, g);
    row.at(j, i, channels, y);
#pragma unroll
    for (int k = 0; k < 2; k++) g[k] *= w[k], y[k] = normalised(y[k], m, scale);
  };
  constexpr int SUMS = CENTRED ? 2 : 1;
  float sum[SUMS];
  sum_row<PIECES, WIDTH>(
      channels,
      [&](int j, int64_t i, float (&t)[SUMS][2]) {
        float g[2], y[2];
        load(j, i, g, y);
#pragma unroll
        for (int k = 0; k < 2; k++) {
          t[0][k] = g[k] * y[k];
          if constexpr (CENTRED) t[1][k] = g[k];
        }
      },
      sum);
  const float mean_product = sum[0] / float(channels);
  float mean_grad = 0.0f;
  if constexpr (CENTRED) mean_grad = sum[1] / float(channels);
  const T* beside = grad_stream ? grad_stream + r * channels : nullptr;
  each_pair_beside<PIECES, WIDTH>(beside, channels, [&](int j, int64_t i, const float (&other)[2]) {
    float g[2], y[2];
    load(j, i, g, y);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      g[k] = norm_grad_x(g[k], y[k], mean_grad, mean_product, scale);
      if (beside) g[k] = other[k] + as_stored<T>(g[k]);
    }
    store_two<WIDTH>(grad_x + r * channels, i, channels, g);
  });
}

// Terms of the weights' gradients, of one element.
struct Statistics {  // (B, S)
  const float* data;
  int64_t sample, position;
  __device__ float at(int64_t b, int64_t s) const { return data[b * sample + s * position]; }
};
struct LayerTerm {
  Statistics mean, rstd;
  struct Row {
    float mean, rstd;
  };
  __device__ Row row(int64_t b, int64_t s) const { return {mean.at(b, s), rstd.at(b, s)}; }
  __device__ void add(const float (&v)[2], const Row& row, float (&sum)[2]) const {
    sum[0] = fma(v[0], normalised(v[1], row.mean, row.rstd), sum[0]);
    sum[1] += v[0];
  }
};
struct RmsTerm {
  Statistics rstd;
  __device__ float row(int64_t b, int64_t s) const { return rstd.at(b, s); }
  __device__ void add(const float (&v)[2], const float& rstd, float (&sum)[1]) const {
    sum[0] = fma(v[0], normalised(v[1], 0.0f, rstd), sum[0]);
  }
};

// --- launchers ------------------------------------------------------------------------------------

template <bool CENTRED>
void forward(const At& at, const ConstArray& x, const std::optional<ConstArray>& residual, const ConstArray& weight,
             const ConstArray* bias, float epsilon, const std::optional<Array>& stream, const Array& out, const Array* mean,
             const Array& rstd) {
  check_norm_forward(at.kernel, x, residual, weight, bias, stream, out, mean, rstd);
  const int64_t rows = x.shape[0], channels = x.shape[1];
  norm_types(at.kernel, x, weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    const W* bias_data = CENTRED ? bias->as<W>() : nullptr;
    const T* residual_data = data_of<T>(residual);
    T* stream_data = data_of<T>(stream);
    const bool pairs = pack_aligned<T>(x.data, channels, 2) && pack_aligned<T>(out.data, 0, 2) &&
                       pack_aligned<T>(residual_data, 0, 2) && pack_aligned<T>(stream_data, 0, 2) &&
                       pack_aligned<W>(weight.data, 0, 2) && pack_aligned<W>(bias_data, 0, 2);
    choose_row<T>(rows, channels, 1, pairs, [&](auto pieces, auto width, const Grid& grid) {
      launch(at, forward_kernel<T, W, CENTRED, pieces.value, width.value>, grid, x.as<T>(), residual_data, weight.as<W>(),
             bias_data, epsilon, rows, channels, stream_data, out.as<T>(), CENTRED ? mean->as<float>() : nullptr,
             rstd.as<float>());
    });
  });
}

template <bool CENTRED>
void backward(const At& at, const ConstArray& grad, const std::optional<ConstArray>& grad_stream, const ConstArray& x,
              const ConstArray& weight, const ConstArray* mean, const ConstArray& rstd, const Array& grad_x) {
  check_norm_backward(at.kernel, grad, grad_stream, x, weight, mean, rstd, grad_x);
  const int64_t rows = x.shape[0], channels = x.shape[1];
  norm_types(at.kernel, x, weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    const T* stream_data = data_of<T>(grad_stream);
    const bool pairs = pack_aligned<T>(x.data, channels, 2) && pack_aligned<T>(grad.data, 0, 2) &&
                       pack_aligned<T>(stream_data, 0, 2) && pack_aligned<T>(grad_x.data, 0, 2) &&
                       pack_aligned<W>(weight.data, 0, 2);
    choose_row<T>(rows, channels, 2, pairs, [&](auto pieces, auto width, const Grid& grid) {
      launch(at, backward_kernel<T, W, CENTRED, pieces.value, width.value>, grid, grad.as<T>(), stream_data, x.as<T>(),
             weight.as<W>(), CENTRED ? mean->as<float>() : nullptr, rstd.as<float>(), rows, channels, grad_x.as<T>());
    });
  });
}

Statistics statistics(const ConstArray& x) {
  return {x.as<float>(), x.strides[0], x.strides[1]};
}

}  // namespace

void layer_norm_forward(const ConstArray& x, const std::optional<ConstArray>& residual, const ConstArray& weight,
                        const ConstArray& bias, float epsilon, const std::optional<Array>& stream, const Array& out,
                        const Array& mean, const Array& rstd) {
  forward<true>(PLAIT_AT("layer_norm_forward"), x, residual, weight, &bias, epsilon, stream, out, &mean, rstd);
}

void layer_norm_backward(const ConstArray& grad, const std::optional<ConstArray>& grad_stream, const ConstArray& x,
                         const ConstArray& weight, const ConstArray& mean, const ConstArray& rstd, const Array& grad_x) {
  backward<true>(PLAIT_AT("layer_norm_backward"), grad, grad_stream, x, weight, &mean, rstd, grad_x);
}

void layer_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& mean, const ConstArray& rstd,
                                bool accumulate, const Array& grad_weight, const Array& grad_bias) {
  const At at = PLAIT_AT("layer_norm_backward_weight");
  check_norm_backward_weight(at.kernel, grad, x, &mean, rstd, grad_weight, &grad_bias);
  PLAIT_FLOATS(x.dtype, at.kernel, [&](auto zero) {
    sum_columns<decltype(zero)>(at, {&grad, &x}, LayerTerm{statistics(mean), statistics(rstd)}, accumulate,
                                {grad_weight.as<float>(), grad_bias.as<float>()});
  });
}

void rms_norm_forward(const ConstArray& x, const std::optional<ConstArray>& residual, const ConstArray& weight, float epsilon,
                      const std::optional<Array>& stream, const Array& out, const Array& rstd) {
  forward<false>(PLAIT_AT("rms_norm_forward"), x, residual, weight, nullptr, epsilon, stream, out, nullptr, rstd);
}

void rms_norm_backward(const ConstArray& grad, const std::optional<ConstArray>& grad_stream, const ConstArray& x,
                       const ConstArray& weight, const ConstArray& rstd, const Array& grad_x) {
  backward<false>(PLAIT_AT("rms_norm_backward"), grad, grad_stream, x, weight, nullptr, rstd, grad_x);
}

void rms_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& rstd, bool accumulate,
                              const Array& grad_weight) {
  const At at = PLAIT_AT("rms_norm_backward_weight");
  check_norm_backward_weight(at.kernel, grad, x, nullptr, rstd, grad_weight, nullptr);
  PLAIT_FLOATS(x.dtype, at.kernel, [&](auto zero) {
    sum_columns<decltype(zero)>(at, {&grad, &x}, RmsTerm{statistics(rstd)}, accumulate, {grad_weight.as<float>()});
  });
}

}  // namespace plait
