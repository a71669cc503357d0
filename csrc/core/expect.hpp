// What ops ask of their arguments, with messages that name the argument, what it is and what was
// expected.
#pragma once
#include <initializer_list>

#include "core/array.hpp"

namespace plait {

inline void expect_shape(const char* call, const char* name, const ConstArray& x,
                         std::initializer_list<int64_t> shape) {
  bool equal = x.ndim == int(shape.size());
  for (int i = 0; equal && i < x.ndim; i++) equal = x.shape[i] == shape.begin()[i];
  if (equal) return;
  std::ostringstream text;
  const char* comma = "";
  for (int64_t n : shape) text << comma << n, comma = ", ";
  fail(call, name, " is ", shape_text(x), ", expected (", text.str(),
       shape.size() == 1 ? ",)" : ")");
}

inline void expect_ndim(const char* call, const char* name, const ConstArray& x, int ndim) {
  PLAIT_CHECK(x.ndim == ndim, call, name, " is ", shape_text(x), ", expected ", ndim, " axes");
}

inline void expect_dtype(const char* call, const char* name, const ConstArray& x, DType dtype) {
  PLAIT_CHECK(x.dtype == dtype, call, name, " is ", shape_text(x), ", expected ", name_of(dtype));
}

inline void expect_float(const char* call, const char* name, const ConstArray& x) {
  PLAIT_CHECK(x.dtype == DType::float32 || x.dtype == DType::bfloat16, call, name, " is ",
              shape_text(x), ", expected float32 or bfloat16");
}

inline void expect_contiguous(const char* call, const char* name, const ConstArray& x) {
  PLAIT_CHECK(x.contiguous(), call, name, " ", shape_text(x), " is not contiguous");
}

// Type, shape and no gaps.
inline void expect_array(const char* call, const char* name, const ConstArray& x, DType dtype,
                         std::initializer_list<int64_t> shape) {
  expect_shape(call, name, x, shape);
  expect_dtype(call, name, x, dtype);
  expect_contiguous(call, name, x);
}

// Strided arrays may have any strides but the last, which is 1.
inline void expect_unit_last(const char* call, const char* name, const ConstArray& x) {
  const int last = x.ndim - 1;
  PLAIT_CHECK(last < 0 || x.shape[last] <= 1 || x.size() == 0 || x.strides[last] == 1, call, name,
              " ", shape_text(x), " has stride ", x.strides[last],
              " along its last axis, expected 1");
}

}  // namespace plait
