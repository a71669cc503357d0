// Copies of arrays whose rows copies of 16 bytes cannot take; and whether rows of results can be stored so.
#pragma once
#include <vector>

#include "core/ops.hpp"
#include "cuda/attention_shape.hpp"
#include "cuda/device.hpp"

namespace plait {

inline bool rows_aligned(const ConstArray& x) {
  bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
  for (int axis = 0; axis < 3; axis++) aligned = aligned && (x.strides[axis] % 8 == 0 || x.shape[axis] <= 1);
  return aligned;
}
inline bool stores_aligned(const ConstArray& x) {
  return rows_aligned(x) && x.shape[3] % 8 == 0;
}

// Takes scratch for `floats` and for aligned copies of what is not aligned of `arrays`, which then are those copies.
inline float* take_aligned(const std::vector<ConstArray*>& arrays, int64_t floats) {
  const auto strides = [](const ConstArray& x, Array& copy) {
    copy.dtype = x.dtype, copy.ndim = 4;
    int64_t stride = (x.shape[3] + 7) / 8 * 8;
    copy.strides[3] = 1;
    for (int axis = 2; axis >= 0; axis--) copy.strides[axis] = stride, stride *= x.shape[axis];
    for (int axis = 0; axis < 4; axis++) copy.shape[axis] = x.shape[axis];
    return (stride * size_of(x.dtype) + 255) / 256 * 256;
  };
  int64_t bytes = (floats * 4 + 255) / 256 * 256;
  Array copy;
  for (const ConstArray* x : arrays)
    if (!rows_aligned(*x)) bytes += strides(*x, copy);
  char* memory = static_cast<char*>(scratch_bytes(bytes));
  float* const found = reinterpret_cast<float*>(memory);
  memory += (floats * 4 + 255) / 256 * 256;
  for (ConstArray* x : arrays) {
    if (rows_aligned(*x)) continue;
    Array to;
    const int64_t size = strides(*x, to);
    to.data = memory;
    memory += size;
    convert(*x, to);
    *x = to;
  }
  return found;
}

}  // namespace plait
