// Layer norm and RMS norm over rows. Mean and variance are two passes in float32, each a sum_row
// (vec.hpp: one fixed order for any path and thread count); a row's bits depend on nothing but the
// row.
#include <algorithm>

#include "core/ops.hpp"
#include "cpu/threads.hpp"
#include "cpu/vec.hpp"

#include "core/norm.hpp"

namespace plait {
namespace {

// --- terms of the sums and the rows written: functors, as lambdas would lose the instruction path
// ----

template <class T>
struct Sum {
  const T *x, *y;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    return load<V>(x + i, count) + load<V>(y + i, count);
  }
};

template <class T>
struct SquaredDistance {
  const T* x;
  float mean;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    const V d = load<V>(x + i, count) - mean;
    return d * d;
  }
};

template <class T>
struct Normalised {
  const T* x;
  float mean, rstd;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    return normalised(load<V>(x + i, count), mean, rstd);
  }
};

template <class T, class W>
struct Scaled {
  Normalised<T> x;
  const W *weight, *bias;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    const V w = load<V>(weight + i, count), y = x.template at<V>(i, count);
    return bias ? fma(y, w, load<V>(bias + i, count)) : y * w;
  }
};

template <class T, class W>
struct WeightedGrad {
  const T* grad;
  const W* weight;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    return load<V>(grad + i, count) * load<V>(weight + i, count);
  }
};

template <class T, class W>
struct WeightedProduct {
  WeightedGrad<T, W> grad;
  Normalised<T> x;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    return grad.template at<V>(i, count) * x.template at<V>(i, count);
  }
};

template <class T, class W>
struct GradX {
  WeightedGrad<T, W> grad;
  Normalised<T> x;
  float mean_grad, mean_product;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    return norm_grad_x(grad.template at<V>(i, count), x.template at<V>(i, count), mean_grad,
                       mean_product, x.rstd);
  }
};

// The norm's gradient, rounded to storage, beside that of the stream.
template <class T, class W>
struct StreamGradX {
  const T* grad_stream;
  GradX<T, W> own;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    return load<V>(grad_stream + i, count) + as_stored<T>(own.template at<V>(i, count));
  }
};

// --- row kernels
// -----------------------------------------------------------------------------------

// mean is null for RMS norm, residual and stream where there is no sum.
template <class V, class T, class W>
PLAIT_INLINE void forward_body(const T* x, const T* residual, const W* weight, const W* bias,
                               float epsilon, int64_t rows, int64_t channels, T* stream, T* out,
                               float* mean, float* rstd) {
  for (int64_t r = 0; r < rows; r++, x += channels, out += channels) {
    const T* row = x;
    if (residual) {
      fill_row<V>(channels, stream, Sum<T>{x, residual});
      row = stream;
      residual += channels, stream += channels;
    }
    const float m = mean ? sum_row<V>(channels, Value<T>{row}) / float(channels) : 0.0f;
    const float variance = sum_row<V>(channels, SquaredDistance<T>{row, m}) / float(channels);
    const float scale = 1.0f / __builtin_sqrtf(variance + epsilon);
    fill_row<V>(channels, out, Scaled<T, W>{{row, m, scale}, weight, bias});
    if (mean) mean[r] = m;
    rstd[r] = scale;
  }
}
PLAIT_VECTOR_KERNEL(forward_rows, forward_body)

template <class V, class T, class W>
PLAIT_INLINE void backward_body(const T* grad, const T* grad_stream, const T* x, const W* weight,
                                const float* mean, const float* rstd, int64_t rows,
                                int64_t channels, T* grad_x) {
  for (int64_t r = 0; r < rows; r++, grad += channels, x += channels, grad_x += channels) {
    const WeightedGrad<T, W> g{grad, weight};
    const Normalised<T> y{x, mean ? mean[r] : 0.0f, rstd[r]};
    const float mean_grad = mean ? sum_row<V>(channels, g) / float(channels) : 0.0f;
    const float mean_product = sum_row<V>(channels, WeightedProduct<T, W>{g, y}) / float(channels);
    const GradX<T, W> own{g, y, mean_grad, mean_product};
    if (grad_stream) {
      fill_row<V>(channels, grad_x, StreamGradX<T, W>{grad_stream, own});
      grad_stream += channels;
    } else {
      fill_row<V>(channels, grad_x, own);
    }
  }
}
PLAIT_VECTOR_KERNEL(backward_rows, backward_body)

// Channels of one row are added to the sums; called row after row.
template <class V, class T>
PLAIT_INLINE void backward_weight_body(const T* grad, const T* x, float mean, float rstd,
                                       int64_t channels, float* __restrict__ grad_weight,
                                       float* __restrict__ grad_bias) {
  int64_t c = 0;
  for (; c < channels; c += WIDTH<V>) {
    const int64_t count = channels - c;
    const V g = load<V>(grad + c, count), y = normalised(load<V>(x + c, count), mean, rstd);
    store(grad_weight + c, fma(g, y, load<V>(grad_weight + c, count)), count);
    if (grad_bias) store(grad_bias + c, load<V>(grad_bias + c, count) + g, count);
  }
}
PLAIT_VECTOR_KERNEL(backward_weight_row, backward_weight_body)

// --- launchers
// -------------------------------------------------------------------------------------

int64_t grain_of(int64_t channels) {
  return 1 + 16384 / (channels + 1);
}

// bias and mean are null for RMS norm.
void forward(const char* call, const ConstArray& x, const std::optional<ConstArray>& residual,
             const ConstArray& weight, const ConstArray* bias, float epsilon,
             const std::optional<Array>& stream, const Array& out, const Array* mean,
             const Array& rstd) {
  check_norm_forward(call, x, residual, weight, bias, stream, out, mean, rstd);
  const int64_t rows = x.shape[0], channels = x.shape[1];
  norm_types(call, x, weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    const T *x_data = x.as<T>(), *residual_data = data_of<T>(residual);
    const W *weight_data = weight.as<W>(), *bias_data = bias ? bias->as<W>() : nullptr;
    T *stream_data = data_of<T>(stream), *out_data = out.as<T>();
    float *mean_data = mean ? mean->as<float>() : nullptr, *rstd_data = rstd.as<float>();
    parallel_for(rows, grain_of(channels), [=](int64_t begin, int64_t end) {
      const int64_t at = begin * channels;
      forward_rows(x_data + at, residual_data ? residual_data + at : residual_data, weight_data,
                   bias_data, epsilon, end - begin, channels,
                   stream_data ? stream_data + at : stream_data, out_data + at,
                   mean_data ? mean_data + begin : mean_data, rstd_data + begin);
    });
  });
}

void backward(const char* call, const ConstArray& grad,
              const std::optional<ConstArray>& grad_stream, const ConstArray& x,
              const ConstArray& weight, const ConstArray* mean, const ConstArray& rstd,
              const Array& grad_x) {
  check_norm_backward(call, grad, grad_stream, x, weight, mean, rstd, grad_x);
  const int64_t rows = x.shape[0], channels = x.shape[1];
  norm_types(call, x, weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    const T *grad_data = grad.as<T>(), *stream_data = data_of<T>(grad_stream),
            *x_data = x.as<T>();
    const W* weight_data = weight.as<W>();
    const float *mean_data = mean ? mean->as<float>() : nullptr, *rstd_data = rstd.as<float>();
    T* out_data = grad_x.as<T>();
    parallel_for(rows, grain_of(channels), [=](int64_t begin, int64_t end) {
      const int64_t at = begin * channels;
      backward_rows(grad_data + at, stream_data ? stream_data + at : stream_data, x_data + at,
                    weight_data, mean_data ? mean_data + begin : mean_data, rstd_data + begin,
                    end - begin, channels, out_data + at);
    });
  });
}

// Threads take disjoint ranges of channels; each channel is one chain over samples, then positions.
void backward_weight(const char* call, const ConstArray& grad, const ConstArray& x,
                     const ConstArray* mean, const ConstArray& rstd, bool accumulate,
                     const Array& grad_weight, const Array* grad_bias) {
  check_norm_backward_weight(call, grad, x, mean, rstd, grad_weight, grad_bias);
  const int64_t samples = x.shape[0], positions = x.shape[1], channels = x.shape[2];
  PLAIT_FLOATS(x.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    const T *grad_data = grad.as<T>(), *x_data = x.as<T>();
    const float *mean_data = mean ? mean->as<float>() : nullptr, *rstd_data = rstd.as<float>();
    float *weight_data = grad_weight.as<float>(),
          *bias_data = grad_bias ? grad_bias->as<float>() : nullptr;
    constexpr int64_t STRIP = 64;
    const int64_t grain = 1 + 32768 / (STRIP * (samples * positions + 1));
    parallel_for((channels + STRIP - 1) / STRIP, grain, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * STRIP, count = std::min(end * STRIP, channels) - first;
      if (!accumulate) {
        std::fill_n(weight_data + first, count, 0.0f);
        if (bias_data) std::fill_n(bias_data + first, count, 0.0f);
      }
      for (int64_t b = 0; b < samples; b++)
        for (int64_t s = 0; s < positions; s++)
          backward_weight_row(grad_data + b * grad.strides[0] + s * grad.strides[1] + first,
                              x_data + b * x.strides[0] + s * x.strides[1] + first,
                              mean ? mean_data[b * mean->strides[0] + s * mean->strides[1]] : 0.0f,
                              rstd_data[b * rstd.strides[0] + s * rstd.strides[1]], count,
                              weight_data + first, bias_data ? bias_data + first : bias_data);
    });
  });
}

}  // namespace

void layer_norm_forward(const ConstArray& x, const std::optional<ConstArray>& residual,
                        const ConstArray& weight, const ConstArray& bias, float epsilon,
                        const std::optional<Array>& stream, const Array& out, const Array& mean,
                        const Array& rstd) {
  forward("layer_norm_forward", x, residual, weight, &bias, epsilon, stream, out, &mean, rstd);
}

void layer_norm_backward(const ConstArray& grad, const std::optional<ConstArray>& grad_stream,
                         const ConstArray& x, const ConstArray& weight, const ConstArray& mean,
                         const ConstArray& rstd, const Array& grad_x) {
  backward("layer_norm_backward", grad, grad_stream, x, weight, &mean, rstd, grad_x);
}

void layer_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& mean,
                                const ConstArray& rstd, bool accumulate, const Array& grad_weight,
                                const Array& grad_bias) {
  backward_weight("layer_norm_backward_weight", grad, x, &mean, rstd, accumulate, grad_weight,
                  &grad_bias);
}

void rms_norm_forward(const ConstArray& x, const std::optional<ConstArray>& residual,
                      const ConstArray& weight, float epsilon, const std::optional<Array>& stream,
                      const Array& out, const Array& rstd) {
  forward("rms_norm_forward", x, residual, weight, nullptr, epsilon, stream, out, nullptr, rstd);
}

void rms_norm_backward(const ConstArray& grad, const std::optional<ConstArray>& grad_stream,
                       const ConstArray& x, const ConstArray& weight, const ConstArray& rstd,
                       const Array& grad_x) {
  backward("rms_norm_backward", grad, grad_stream, x, weight, nullptr, rstd, grad_x);
}

void rms_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& rstd,
                              bool accumulate, const Array& grad_weight) {
  backward_weight("rms_norm_backward_weight", grad, x, nullptr, rstd, accumulate, grad_weight,
                  nullptr);
}

}  // namespace plait
