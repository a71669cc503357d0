// Batch norm (Ioffe and Szegedy 2015): every sum is one chain per channel over rows; vectors run
// over channels, threads over channels where there are sums, over rows elsewhere.
//
// The variance is of two passes: fma(d, d, sum) with d = x - mean. xhat = (x - mean) * rstd, rstd =
// 1 / sqrt(variance + epsilon); out = fma(xhat, weight, bias). Backward rebuilds xhat with the same
// roundings.
#include "core/batch_norm.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/ops.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"
#include "cpu/vec.hpp"

namespace plait {
namespace {

constexpr int64_t BLOCK = 64;             // channels that a thread sums at once
constexpr int64_t THREAD_WORK = 1 << 14;  // elements worth a thread

// A step's at<V, J>(i, count) does channels [i, i + count), at most J vectors of them: what it
// keeps from row to row stays in registers.
template <class V, class Step>
PLAIT_INLINE void over_channels(int64_t begin, int64_t end, Step step) {
  constexpr int64_t W = WIDTH<V>;
  int64_t i = begin;
  for (; i + 4 * W <= end; i += 4 * W) step.template at<V, 4>(i, 4 * W);
  for (; i + W <= end; i += W) step.template at<V, 1>(i, W);
  if (i < end) step.template at<V, 1>(i, end - i);
}
PLAIT_VECTOR_KERNEL(run_step, over_channels)

template <class V, int J, class T>
PLAIT_INLINE void load_all(const T* p, int64_t count, V* v) {
#pragma GCC unroll 4
  for (int j = 0; j < J; j++) v[j] = load<V>(p + j * WIDTH<V>, count - j * WIDTH<V>);
}
template <class V, int J, class T>
PLAIT_INLINE void store_all(T* p, const V* v, int64_t count) {
#pragma GCC unroll 4
  for (int j = 0; j < J; j++) store(p + j * WIDTH<V>, v[j], count - j * WIDTH<V>);
}

template <class T>
struct Statistics {
  int64_t rows, pitch;
  const T* x;
  float *mean, *variance;

  template <class V, int J>
  PLAIT_INLINE void at(int64_t i, int64_t count) const {
    const V n = all<V>(float(rows));
    V sum[J] = {}, center[J], v[J];
    for (int64_t r = 0; r < rows; r++) {
      load_all<V, J>(x + r * pitch + i, count, v);
#pragma GCC unroll 4
      for (int j = 0; j < J; j++) sum[j] += v[j];
    }
#pragma GCC unroll 4
    for (int j = 0; j < J; j++) center[j] = sum[j] / n, sum[j] = V{};
    for (int64_t r = 0; r < rows; r++) {
      load_all<V, J>(x + r * pitch + i, count, v);
#pragma GCC unroll 4
      for (int j = 0; j < J; j++) {
        const V d = v[j] - center[j];
        sum[j] = fma(d, d, sum[j]);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < J; j++) sum[j] = sum[j] / n;
    store_all<V, J>(mean + i, center, count);
    store_all<V, J>(variance + i, sum, count);
  }
};

template <class T, class W>
struct Normalize {
  int64_t rows, pitch;
  const T* x;
  const float *mean, *rstd;
  const W *weight, *bias;
  T* out;

  template <class V, int J>
  PLAIT_INLINE void at(int64_t i, int64_t count) const {
    V center[J], scale[J], w[J], shift[J], v[J];
    load_all<V, J>(mean + i, count, center);
    load_all<V, J>(rstd + i, count, scale);
    load_all<V, J>(weight + i, count, w);
    load_all<V, J>(bias + i, count, shift);
    for (int64_t r = 0; r < rows; r++) {
      load_all<V, J>(x + r * pitch + i, count, v);
#pragma GCC unroll 4
      for (int j = 0; j < J; j++) v[j] = fma((v[j] - center[j]) * scale[j], w[j], shift[j]);
      store_all<V, J>(out + r * pitch + i, v, count);
    }
  }
};

// Continues the chains of sum(grad) and sum(grad * xhat).
template <class T>
struct GradSums {
  int64_t rows, grad_pitch, pitch;
  const T *grad, *x;
  const float *mean, *rstd;
  float *sum_grad, *sum_product;

  template <class V, int J>
  PLAIT_INLINE void at(int64_t i, int64_t count) const {
    V center[J], scale[J], plain[J], product[J], g[J], v[J];
    load_all<V, J>(mean + i, count, center);
    load_all<V, J>(rstd + i, count, scale);
    load_all<V, J>(sum_grad + i, count, plain);
    load_all<V, J>(sum_product + i, count, product);
    for (int64_t r = 0; r < rows; r++) {
      load_all<V, J>(grad + r * grad_pitch + i, count, g);
      load_all<V, J>(x + r * pitch + i, count, v);
#pragma GCC unroll 4
      for (int j = 0; j < J; j++) {
        plain[j] += g[j];
        product[j] = fma(g[j], (v[j] - center[j]) * scale[j], product[j]);
      }
    }
    store_all<V, J>(sum_grad + i, plain, count);
    store_all<V, J>(sum_product + i, product, count);
  }
};

template <class T, class W>
struct Backward {
  int64_t rows, pitch;
  const T *grad, *x;
  const W* weight;
  const float *mean, *rstd, *mean_grad, *mean_product;
  T* grad_x;

  template <class V, int J>
  PLAIT_INLINE void at(int64_t i, int64_t count) const {
    V center[J], scale[J], factor[J], plain[J], product[J], g[J], v[J];
    load_all<V, J>(mean + i, count, center);
    load_all<V, J>(rstd + i, count, scale);
    load_all<V, J>(weight + i, count, factor);
    load_all<V, J>(mean_grad + i, count, plain);
    load_all<V, J>(mean_product + i, count, product);
#pragma GCC unroll 4
    for (int j = 0; j < J; j++) factor[j] = factor[j] * scale[j];
    for (int64_t r = 0; r < rows; r++) {
      load_all<V, J>(grad + r * pitch + i, count, g);
      load_all<V, J>(x + r * pitch + i, count, v);
#pragma GCC unroll 4
      for (int j = 0; j < J; j++) {
        const V xhat = (v[j] - center[j]) * scale[j];
        v[j] = factor[j] * fma(-xhat, product[j], g[j] - plain[j]);
      }
      store_all<V, J>(grad_x + r * pitch + i, v, count);
    }
  }
};

// step(begin, end) for ranges of channels.
template <class Step>
void share_channels(int64_t rows, int64_t channels, const Step& step) {
  // A few channels are still shared by all threads: their chains do not depend on the cut.
  const int64_t width = (channels + BLOCK - 1) / BLOCK >= threads() ? BLOCK : 16;
  parallel_for((channels + width - 1) / width, 1 + THREAD_WORK / (width * rows + 1),
               [&](int64_t begin, int64_t end) {
                 run_step(begin * width, std::min(end * width, channels), step);
               });
}

// step(begin, rows) makes the step for a range of rows.
template <class Step>
void share_rows(int64_t rows, int64_t channels, const Step& step) {
  parallel_for(rows, 1 + THREAD_WORK / (channels + 1), [&](int64_t begin, int64_t end) {
    run_step(int64_t(0), channels, step(begin, end - begin));
  });
}

std::vector<float> rstd_of(const float* variance, int64_t channels, float epsilon) {
  std::vector<float> rstd(size_t(channels), 0.0f);
  for (int64_t i = 0; i < channels; i++) rstd[size_t(i)] = 1.0f / std::sqrt(variance[i] + epsilon);
  return rstd;
}

template <class W>
void forward_with(const ConstArray& x, const W* weight, const W* bias, float epsilon, bool training,
                  const Array& mean, const Array& variance, const Array& out) {
  PLAIT_FLOATS(x.dtype, "batch_norm_forward", [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = x.shape[0], c = x.shape[1];
    const T* from = x.as<T>();
    T* to = out.as<T>();
    float *m = mean.as<float>(), *v = variance.as<float>();
    if (training) share_channels(rows, c, Statistics<T>{rows, c, from, m, v});
    const std::vector<float> rstd = rstd_of(v, c, epsilon);
    share_rows(rows, c, [&](int64_t begin, int64_t count) {
      return Normalize<T, W>{count,  c,    from + begin * c, m, rstd.data(),
                             weight, bias, to + begin * c};
    });
  });
}

template <class W>
void backward_with(const ConstArray& grad, const ConstArray& x, const W* weight, const float* mean,
                   const float* variance, float epsilon, const Array& grad_x) {
  PLAIT_FLOATS(x.dtype, "batch_norm_backward", [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = x.shape[0], c = x.shape[1];
    const T *g = grad.as<T>(), *from = x.as<T>();
    T* to = grad_x.as<T>();
    const std::vector<float> rstd = rstd_of(variance, c, epsilon);
    std::vector<float> plain(size_t(c), 0.0f), product(size_t(c), 0.0f);
    share_channels(
        rows, c, GradSums<T>{rows, c, c, g, from, mean, rstd.data(), plain.data(), product.data()});
    for (size_t i = 0; i < plain.size(); i++) plain[i] /= float(rows), product[i] /= float(rows);
    share_rows(rows, c, [&](int64_t begin, int64_t count) {
      return Backward<T, W>{count, c,           g + begin * c, from + begin * c, weight,
                            mean,  rstd.data(), plain.data(),  product.data(),   to + begin * c};
    });
  });
}

}  // namespace

void batch_norm_forward(const ConstArray& x, const ConstArray& weight, const ConstArray& bias,
                        float epsilon, bool training, const Array& mean, const Array& variance,
                        const Array& out) {
  const char* call = "batch_norm_forward";
  check_batch_norm_forward(x, weight, bias, training, mean, variance, out);
  PLAIT_FLOATS(weight.dtype, call, [&](auto zero) {
    using W = decltype(zero);
    forward_with(x, weight.as<W>(), bias.as<W>(), epsilon, training, mean, variance, out);
  });
}

void batch_norm_backward(const ConstArray& grad, const ConstArray& x, const ConstArray& weight,
                         const ConstArray& mean, const ConstArray& variance, float epsilon,
                         const Array& grad_x) {
  const char* call = "batch_norm_backward";
  check_batch_norm_backward(grad, x, weight, mean, variance, grad_x);
  PLAIT_FLOATS(weight.dtype, call, [&](auto zero) {
    using W = decltype(zero);
    backward_with(grad, x, weight.as<W>(), mean.as<float>(), variance.as<float>(), epsilon, grad_x);
  });
}

void batch_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& mean,
                                const ConstArray& variance, float epsilon, bool accumulate,
                                const Array& grad_weight, const Array& grad_bias) {
  check_batch_norm_backward_weight(grad, x, mean, variance, grad_weight, grad_bias);
  const float *m = mean.as<float>(), *v = variance.as<float>();
  float *product = grad_weight.as<float>(), *plain = grad_bias.as<float>();
  PLAIT_FLOATS(x.dtype, "batch_norm_backward_weight", [&](auto zero) {
    using T = decltype(zero);
    const T *g = grad.as<T>(), *from = x.as<T>();
    const int64_t c = x.shape[2];
    const std::vector<float> rstd = rstd_of(v, c, epsilon);
    if (!accumulate) {
      std::fill(plain, plain + c, 0.0f);
      std::fill(product, product + c, 0.0f);
    }
    for (int64_t s = 0; s < x.shape[0]; s++)
      share_channels(x.shape[1], c,
                     GradSums<T>{x.shape[1], grad.strides[1], x.strides[1], g + s * grad.strides[0],
                                 from + s * x.strides[0], m, rstd.data(), plain, product});
  });
}

}  // namespace plait
