// A view of an array someone else owns: pointer, element type, shape and strides (in elements).
#pragma once
#include <string>

#include "core/dtype.hpp"
#include "core/error.hpp"

namespace plait {

constexpr int MAX_DIMS = 8;

struct ConstArray {
  const void* data = nullptr;
  DType dtype = DType::float32;
  int ndim = 0;
  int64_t shape[MAX_DIMS] = {};
  int64_t strides[MAX_DIMS] = {};

  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) n *= shape[i];
    return n;
  }
  // C order without gaps; axes of length 1, and all axes of an empty array, may have any stride.
  bool contiguous() const {
    if (size() == 0) return true;
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; i--) {
      if (shape[i] != 1 && strides[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }
  template <class T>
  const T* as() const {
    PLAIT_CHECK(dtype_of<T>::value == dtype, "array", "element type is ", name_of(dtype),
                ", expected ", name_of(dtype_of<T>::value));
    return static_cast<const T*>(data);
  }
};

struct Array : ConstArray {
  template <class T>
  T* as() const {
    return const_cast<T*>(ConstArray::as<T>());
  }
};

std::string shape_text(const ConstArray& x);  // "(2, 3) float32"

}  // namespace plait

// Calls fn with a zero of the array's float storage type: PLAIT_FLOATS(x.dtype, "gelu", [&](auto zero) {...})
#define PLAIT_FLOATS(dtype, call, ...)                                        \
  do {                                                                        \
    if ((dtype) == ::plait::DType::float32) {                                 \
      __VA_ARGS__(float{});                                                   \
    } else if ((dtype) == ::plait::DType::bfloat16) {                         \
      __VA_ARGS__(::plait::bfloat16{});                                       \
    } else {                                                                  \
      ::plait::fail(call, "needs float32 or bfloat16, got ", name_of(dtype)); \
    }                                                                         \
  } while (0)
