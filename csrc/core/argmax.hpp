// What argmax of both backends shares: which of two elements is in front, and what it asks of its arguments.
#pragma once
#include <cstdint>

#include "core/expect.hpp"
#include "core/math.hpp"

namespace plait {

// An element of a row. At first none: anything is ahead of it.
struct Best {
  float value = -math::INF;
  int32_t index = INT32_MAX;

  // Whether the other is: NaN before the larger before the first.
  PLAIT_INLINE bool behind(const Best& other) const {
    if (other.value != other.value) return value == value || other.index < index;
    return other.value > value || (other.value == value && other.index < index);
  }
};

inline void check_argmax(const ConstArray& x, int64_t columns, const Array& value, const Array& index) {
  const char* call = "argmax";
  expect_ndim(call, "x", x, 2);
  expect_float(call, "x", x);
  expect_unit_last(call, "x", x);
  PLAIT_CHECK(columns >= 0 && columns <= x.shape[1] && columns <= INT32_MAX, call, "columns is ", columns, ", x is ",
              shape_text(x), ": it is at least 0, and at most those of x and 2^31 - 1");
  expect_array(call, "value", value, DType::float32, {x.shape[0]});
  expect_array(call, "index", index, DType::int32, {x.shape[0]});
}

}  // namespace plait
