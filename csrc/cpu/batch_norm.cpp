// Batch norm (Ioffe and Szegedy 2015): every sum is one chain per channel over rows; threads and vectors run over channels.
//
// The variance is of two passes: fma(d, d, sum) with d = x - mean. xhat = (x - mean) * rstd, rstd = 1 / sqrt(variance +
// epsilon); out = fma(xhat, weight, bias). Backward rebuilds xhat with the same roundings.
#include <algorithm>
#include <cmath>

#include "core/ops.hpp"
#include "cpu/fma.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int BLOCK = 64;               // channels whose sums stay in the first cache
constexpr int64_t THREAD_WORK = 1 << 14;  // elements worth a thread

// Channels [c, c + n) of rows that lie `pitch` elements apart, n <= BLOCK.
struct Columns {
  int64_t rows, pitch, c, n;
};

template <class T>
PLAIT_INLINE void statistics_body(Columns b, const T* x, float* mean, float* variance) {
  float sum[BLOCK] = {}, center[BLOCK];
  for (int64_t r = 0; r < b.rows; r++) {
    const T* row = x + r * b.pitch + b.c;
    for (int64_t i = 0; i < b.n; i++) sum[i] += to_float(row[i]);
  }
  const float count = float(b.rows);
  for (int64_t i = 0; i < b.n; i++) center[i] = mean[b.c + i] = sum[i] / count, sum[i] = 0;
  for (int64_t r = 0; r < b.rows; r++) {
    const T* row = x + r * b.pitch + b.c;
    for (int64_t i = 0; i < b.n; i++) {
      const float d = to_float(row[i]) - center[i];
      sum[i] = fused(d, d, sum[i]);
    }
  }
  for (int64_t i = 0; i < b.n; i++) variance[b.c + i] = sum[i] / count;
}
PLAIT_KERNEL(statistics, statistics_body)

template <class T, class W>
PLAIT_INLINE void normalize_body(Columns b, const T* x, const float* mean, const float* rstd,
                                 const W* weight, const W* bias, T* out) {
  float center[BLOCK], scale[BLOCK], w[BLOCK], shift[BLOCK];
  for (int64_t i = 0; i < b.n; i++) {
    center[i] = mean[b.c + i], scale[i] = rstd[i];
    w[i] = to_float(weight[b.c + i]), shift[i] = to_float(bias[b.c + i]);
  }
  for (int64_t r = 0; r < b.rows; r++) {
    const T* row = x + r * b.pitch + b.c;
    T* to = out + r * b.pitch + b.c;
    for (int64_t i = 0; i < b.n; i++)
      to[i] = from_float<T>(fused((to_float(row[i]) - center[i]) * scale[i], w[i], shift[i]));
  }
}
PLAIT_KERNEL(normalize, normalize_body)

// Continues the chains of sum(grad) and sum(grad * xhat) that n floats of each buffer hold.
template <class T>
PLAIT_INLINE void grad_sums_body(Columns b, const T* grad, int64_t grad_pitch, const T* x, const float* mean, const float* rstd,
                                 float* sum_grad, float* sum_product) {
  float center[BLOCK], scale[BLOCK], plain[BLOCK], product[BLOCK];
  for (int64_t i = 0; i < b.n; i++) {
    center[i] = mean[b.c + i], scale[i] = rstd[i], plain[i] = sum_grad[i], product[i] = sum_product[i];
  }
  for (int64_t r = 0; r < b.rows; r++) {
    const T *g = grad + r * grad_pitch + b.c, *row = x + r * b.pitch + b.c;
    for (int64_t i = 0; i < b.n; i++) {
      const float xhat = (to_float(row[i]) - center[i]) * scale[i];
      plain[i] += to_float(g[i]);
      product[i] = fused(to_float(g[i]), xhat, product[i]);
    }
  }
  for (int64_t i = 0; i < b.n; i++) sum_grad[i] = plain[i], sum_product[i] = product[i];
}
PLAIT_KERNEL(grad_sums, grad_sums_body)

template <class T, class W>
PLAIT_INLINE void backward_body(Columns b, const T* grad, const T* x, const W* weight, const float* mean,
                                const float* rstd, const float* mean_grad, const float* mean_product,
                                T* grad_x) {
  float center[BLOCK], scale[BLOCK], factor[BLOCK], plain[BLOCK], product[BLOCK];
  for (int64_t i = 0; i < b.n; i++) {
    center[i] = mean[b.c + i], scale[i] = rstd[i], factor[i] = to_float(weight[b.c + i]) * rstd[i];
    plain[i] = mean_grad[i], product[i] = mean_product[i];
  }
  for (int64_t r = 0; r < b.rows; r++) {
    const T *g = grad + r * b.pitch + b.c, *row = x + r * b.pitch + b.c;
    T* to = grad_x + r * b.pitch + b.c;
    for (int64_t i = 0; i < b.n; i++) {
      const float xhat = (to_float(row[i]) - center[i]) * scale[i];
      to[i] = from_float<T>(factor[i] * fused(-xhat, product[i], to_float(g[i]) - plain[i]));
    }
  }
}
PLAIT_KERNEL(backward, backward_body)

template <class Body>
void blocks_of_channels(int64_t rows, int64_t channels, const Body& body) {
  const int64_t blocks = (channels + BLOCK - 1) / BLOCK;
  // A few channels are still shared by all threads: their chains do not depend on the cut.
  const int64_t width = blocks >= threads() ? BLOCK : 16;
  parallel_for((channels + width - 1) / width, 1 + THREAD_WORK / (width * rows + 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t c = begin * width; c < std::min(end * width, channels); c += width)
                   body(Columns{rows, channels, c, std::min(width, channels - c)});
               });
}

void load_rstd(const Columns& b, const float* variance, float epsilon, float* rstd) {
  for (int64_t i = 0; i < b.n; i++) rstd[i] = 1.0f / std::sqrt(variance[b.c + i] + epsilon);
}

void check(const char* call, const ConstArray& x, const ConstArray& other) {
  PLAIT_CHECK(x.ndim == 2 && other.ndim == 2 && x.shape[0] == other.shape[0] && x.shape[1] == other.shape[1] &&
                  x.dtype == other.dtype && x.contiguous() && other.contiguous(),
              call, "needs contiguous (R, C) arrays of one shape and type, got ", shape_text(x), " and ",
              shape_text(other));
}

void check_strided(const char* call, const ConstArray& x, const ConstArray& grad) {
  bool good = x.ndim == 3 && grad.ndim == 3 && x.dtype == grad.dtype;
  for (int i = 0; good && i < 3; i++) good = x.shape[i] == grad.shape[i];
  for (const ConstArray* a : {&x, &grad})
    good = good && (a->size() == 0 || a->shape[2] == 1 || a->strides[2] == 1);
  PLAIT_CHECK(good, call, "needs (B, S, C) arrays of one shape and type with adjacent channels, got ",
              shape_text(x), " and ", shape_text(grad));
}

void check_channels(const char* call, const ConstArray& x, const ConstArray& v) {
  PLAIT_CHECK(v.ndim == 1 && v.shape[0] == x.shape[x.ndim - 1] && v.contiguous(), call, "per-channel array ",
              shape_text(v), " does not fit rows ", shape_text(x));
}

template <class W>
void forward_with(const ConstArray& x, const W* weight, const W* bias, float epsilon, bool training,
                  const Array& mean, const Array& variance, const Array& out) {
  PLAIT_FLOATS(x.dtype, "batch_norm_forward", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.as<T>();
    T* to = out.as<T>();
    float *m = mean.as<float>(), *v = variance.as<float>();
    blocks_of_channels(x.shape[0], x.shape[1], [&](const Columns& b) {
      float rstd[BLOCK];
      if (training) statistics(b, from, m, v);
      load_rstd(b, v, epsilon, rstd);
      normalize(b, from, static_cast<const float*>(m), static_cast<const float*>(rstd), weight, bias, to);
    });
  });
}

template <class W>
void backward_with(const ConstArray& grad, const ConstArray& x, const W* weight, const float* mean,
                   const float* variance, float epsilon, const Array& grad_x) {
  PLAIT_FLOATS(x.dtype, "batch_norm_backward", [&](auto zero) {
    using T = decltype(zero);
    const T *g = grad.as<T>(), *from = x.as<T>();
    T* to = grad_x.as<T>();
    const float rows = float(x.shape[0]);
    blocks_of_channels(x.shape[0], x.shape[1], [&](const Columns& b) {
      float rstd[BLOCK], plain[BLOCK] = {}, product[BLOCK] = {};
      load_rstd(b, variance, epsilon, rstd);
      const float* scale = rstd;
      grad_sums(b, g, b.pitch, from, mean, scale, static_cast<float*>(plain), static_cast<float*>(product));
      for (int64_t i = 0; i < b.n; i++) plain[i] /= rows, product[i] /= rows;
      backward(b, g, from, weight, mean, scale, static_cast<const float*>(plain),
               static_cast<const float*>(product), to);
    });
  });
}

}  // namespace

void batch_norm_forward(const ConstArray& x, const ConstArray& weight, const ConstArray& bias, float epsilon,
                        bool training, const Array& mean, const Array& variance, const Array& out) {
  const char* call = "batch_norm_forward";
  check(call, x, out);
  for (const ConstArray* v : {&weight, &bias, static_cast<const ConstArray*>(&mean),
                              static_cast<const ConstArray*>(&variance)})
    check_channels(call, x, *v);
  PLAIT_CHECK(weight.dtype == bias.dtype, call, "weight and bias differ in type");
  PLAIT_CHECK(!training || x.shape[0] > 0, call, "batch statistics of no rows, x is ", shape_text(x));
  PLAIT_FLOATS(weight.dtype, call, [&](auto zero) {
    using W = decltype(zero);
    forward_with(x, weight.as<W>(), bias.as<W>(), epsilon, training, mean, variance, out);
  });
}

void batch_norm_backward(const ConstArray& grad, const ConstArray& x, const ConstArray& weight,
                         const ConstArray& mean, const ConstArray& variance, float epsilon, const Array& grad_x) {
  const char* call = "batch_norm_backward";
  check(call, x, grad);
  check(call, x, grad_x);
  for (const ConstArray* v : {&weight, &mean, &variance}) check_channels(call, x, *v);
  PLAIT_FLOATS(weight.dtype, call, [&](auto zero) {
    using W = decltype(zero);
    backward_with(grad, x, weight.as<W>(), mean.as<float>(), variance.as<float>(), epsilon, grad_x);
  });
}

void batch_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& mean,
                                const ConstArray& variance, float epsilon, bool accumulate,
                                const Array& grad_weight, const Array& grad_bias) {
  const char* call = "batch_norm_backward_weight";
  check_strided(call, x, grad);
  for (const ConstArray* v : {&mean, &variance, static_cast<const ConstArray*>(&grad_weight),
                              static_cast<const ConstArray*>(&grad_bias)})
    check_channels(call, x, *v);
  const float *m = mean.as<float>(), *v = variance.as<float>();
  float *product = grad_weight.as<float>(), *plain = grad_bias.as<float>();
  PLAIT_FLOATS(x.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    const T *g = grad.as<T>(), *from = x.as<T>();
    blocks_of_channels(x.shape[0] * x.shape[1], x.shape[2], [&](Columns b) {
      b.rows = x.shape[1], b.pitch = x.strides[1];
      float rstd[BLOCK];
      load_rstd(b, v, epsilon, rstd);
      if (!accumulate) {
        std::fill(plain + b.c, plain + b.c + b.n, 0.0f);
        std::fill(product + b.c, product + b.c + b.n, 0.0f);
      }
      for (int64_t s = 0; s < x.shape[0]; s++)
        grad_sums(b, g + s * grad.strides[0], grad.strides[1], from + s * x.strides[0], m,
                  static_cast<const float*>(rstd), plain + b.c, product + b.c);
    });
  });
}

}  // namespace plait
