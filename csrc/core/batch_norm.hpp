// What the batch norms of both backends ask of their arguments.
#pragma once
#include "core/array.hpp"

namespace plait {

inline void check_batch_rows(const char* call, const ConstArray& x, const ConstArray& other) {
  PLAIT_CHECK(x.ndim == 2 && other.ndim == 2 && x.shape[0] == other.shape[0] &&
                  x.shape[1] == other.shape[1] && x.dtype == other.dtype && x.contiguous() &&
                  other.contiguous(),
              call, "needs contiguous (R, C) arrays of one shape and type, got ", shape_text(x),
              " and ", shape_text(other));
}

inline void check_batch_channels(const char* call, const ConstArray& x, const ConstArray& v) {
  PLAIT_CHECK(v.ndim == 1 && v.shape[0] == x.shape[x.ndim - 1] && v.contiguous(), call,
              "per-channel array ", shape_text(v), " does not fit rows ", shape_text(x));
}

inline void check_batch_norm_forward(const ConstArray& x, const ConstArray& weight, const ConstArray& bias, bool training,
                                     const Array& mean, const Array& variance, const Array& out) {
  const char* call = "batch_norm_forward";
  check_batch_rows(call, x, out);
  for (const ConstArray* v : {&weight, &bias, static_cast<const ConstArray*>(&mean),
                              static_cast<const ConstArray*>(&variance)})
    check_batch_channels(call, x, *v);
  PLAIT_CHECK(weight.dtype == bias.dtype, call, "weight and bias differ in type");
  PLAIT_CHECK(!training || x.shape[0] > 0, call, "batch statistics of no rows, x is ",
              shape_text(x));
}

inline void check_batch_norm_backward(const ConstArray& grad, const ConstArray& x, const ConstArray& weight,
                                      const ConstArray& mean, const ConstArray& variance, const Array& grad_x) {
  const char* call = "batch_norm_backward";
  check_batch_rows(call, x, grad);
  check_batch_rows(call, x, grad_x);
  for (const ConstArray* v : {&weight, &mean, &variance}) check_batch_channels(call, x, *v);
}

inline void check_batch_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& mean,
                                             const ConstArray& variance, const Array& grad_weight, const Array& grad_bias) {
  const char* call = "batch_norm_backward_weight";
  bool good = x.ndim == 3 && grad.ndim == 3 && x.dtype == grad.dtype;
  for (int i = 0; good && i < 3; i++) good = x.shape[i] == grad.shape[i];
  for (const ConstArray* a : {&x, &grad})
    good = good && (a->size() == 0 || a->shape[2] == 1 || a->strides[2] == 1);
  PLAIT_CHECK(good, call,
              "needs (B, S, C) arrays of one shape and type with adjacent channels, got ",
              shape_text(x), " and ", shape_text(grad));
  for (const ConstArray* v : {&mean, &variance, static_cast<const ConstArray*>(&grad_weight),
                              static_cast<const ConstArray*>(&grad_bias)})
    check_batch_channels(call, x, *v);
}

}  // namespace plait
