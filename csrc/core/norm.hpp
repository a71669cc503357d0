// What the norms of both backends share: what they ask of their arguments, and the formulas of one element (V is float or,
// on the CPU, a vector of floats: then include cpu/vec.hpp first).
#pragma once
#include <optional>

#include "core/expect.hpp"
#include "core/scalar.hpp"

namespace plait {

// For RMS norm the mean is 0, and x - 0 is x.
template <class V>
PLAIT_INLINE V normalised(V x, float mean, float rstd) {
  return (x - mean) * rstd;
}

// rstd (g - mean(g) - y mean(g y)) with g = grad * weight, y = normalised x
template <class V>
PLAIT_INLINE V norm_grad_x(V g, V y, float mean_grad, float mean_product, float rstd) {
  return fma(y, all<V>(-mean_product), g - mean_grad) * rstd;
}

// bias and mean are null for RMS norm.
inline void check_norm_forward(const char* call, const ConstArray& x, const std::optional<ConstArray>& residual,
                               const ConstArray& weight, const ConstArray* bias, const std::optional<Array>& stream,
                               const Array& out, const Array* mean, const Array& rstd) {
  expect_ndim(call, "x", x, 2);
  const int64_t rows = x.shape[0], channels = x.shape[1];
  expect_array(call, "x", x, x.dtype, {rows, channels});
  PLAIT_CHECK(residual.has_value() == stream.has_value(), call, residual ? "residual" : "stream", " is given without ",
              residual ? "stream" : "residual", ": give both or neither");
  if (residual) expect_array(call, "residual", *residual, x.dtype, {rows, channels});
  if (stream) expect_array(call, "stream", *stream, x.dtype, {rows, channels});
  expect_array(call, "weight", weight, weight.dtype, {channels});
  if (bias) expect_array(call, "bias", *bias, weight.dtype, {channels});
  expect_array(call, "out", out, x.dtype, {rows, channels});
  if (mean) expect_array(call, "mean", *mean, DType::float32, {rows});
  expect_array(call, "rstd", rstd, DType::float32, {rows});
}

inline void check_norm_backward(const char* call, const ConstArray& grad, const std::optional<ConstArray>& grad_stream,
                                const ConstArray& x, const ConstArray& weight, const ConstArray* mean, const ConstArray& rstd,
                                const Array& grad_x) {
  expect_ndim(call, "x", x, 2);
  const int64_t rows = x.shape[0], channels = x.shape[1];
  expect_array(call, "x", x, x.dtype, {rows, channels});
  expect_array(call, "grad", grad, x.dtype, {rows, channels});
  if (grad_stream) expect_array(call, "grad_stream", *grad_stream, x.dtype, {rows, channels});
  expect_array(call, "weight", weight, weight.dtype, {channels});
  if (mean) expect_array(call, "mean", *mean, DType::float32, {rows});
  expect_array(call, "rstd", rstd, DType::float32, {rows});
  expect_array(call, "grad_x", grad_x, x.dtype, {rows, channels});
}

inline void check_norm_backward_weight(const char* call, const ConstArray& grad, const ConstArray& x, const ConstArray* mean,
                                       const ConstArray& rstd, const Array& grad_weight, const Array* grad_bias) {
  expect_ndim(call, "x", x, 3);
  const int64_t samples = x.shape[0], positions = x.shape[1], channels = x.shape[2];
  expect_shape(call, "grad", grad, {samples, positions, channels});
  expect_dtype(call, "grad", grad, x.dtype);
  expect_unit_last(call, "grad", grad);
  expect_unit_last(call, "x", x);
  for (const ConstArray* statistic : {mean, &rstd}) {
    if (!statistic) continue;
    expect_shape(call, statistic == mean ? "mean" : "rstd", *statistic, {samples, positions});
    expect_dtype(call, statistic == mean ? "mean" : "rstd", *statistic, DType::float32);
  }
  expect_array(call, "grad_weight", grad_weight, DType::float32, {channels});
  if (grad_bias) expect_array(call, "grad_bias", *grad_bias, DType::float32, {channels});
}

// Null where there is none.
template <class T>
const T* data_of(const std::optional<ConstArray>& x) {
  return x ? x->as<T>() : nullptr;
}
template <class T>
T* data_of(const std::optional<Array>& x) {
  return x ? x->as<T>() : nullptr;
}

// Calls run(T{}, W{}) for x of T and weights of W, which is x's type or float32.
template <class Run>
void norm_types(const char* call, const ConstArray& x, const ConstArray& weight, const Run& run) {
  PLAIT_FLOATS(x.dtype, call, [&](auto zero) {
    if (weight.dtype == DType::float32) return run(zero, float{});
    expect_dtype(call, "weight", weight, x.dtype);
    run(zero, zero);
  });
}

}  // namespace plait
