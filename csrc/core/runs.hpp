// Strided arrays of equal shape as runs of consecutive elements: axes that lie without gaps in every array are
// merged, the last one left is the run.
#pragma once
#include <algorithm>

#include "core/array.hpp"
#include "core/expect.hpp"

namespace plait {

template <int N>
struct Runs {
  int ndim = 0;  // axes before the run
  int64_t shape[MAX_DIMS + 1] = {}, strides[N][MAX_DIMS + 1] = {};
  int64_t count = 1, length = 0;  // runs, and elements of each

  Runs(const char* call, const ConstArray* const (&arrays)[N], bool same_dtype = true) {
    const ConstArray& x = *arrays[0];
    for (const ConstArray* a : arrays) {
      PLAIT_CHECK(a->dtype == DType::float32 || a->dtype == DType::bfloat16, call,
                  "needs float32 or bfloat16, got ", shape_text(*a));
      PLAIT_CHECK(a->ndim == x.ndim && std::equal(a->shape, a->shape + a->ndim, x.shape) &&
                      (a->dtype == x.dtype || !same_dtype),
                  call, "arrays differ: ", shape_text(x), " and ", shape_text(*a));
      expect_unit_last(call, "an array", *a);
    }
    for (int axis = 0; axis < x.ndim; axis++) {
      if (x.shape[axis] == 1) continue;
      bool merge = ndim > 0;
      for (int a = 0; merge && a < N; a++)
        merge = strides[a][ndim - 1] == arrays[a]->strides[axis] * x.shape[axis];
      if (!merge) shape[ndim++] = 1;
      shape[ndim - 1] *= x.shape[axis];
      for (int a = 0; a < N; a++) strides[a][ndim - 1] = arrays[a]->strides[axis];
    }
    bool unit = ndim > 0;
    for (int a = 0; unit && a < N; a++) unit = strides[a][ndim - 1] == 1;
    if (!unit) {  // runs of one element: the last axis has length 1, and those before it have gaps
      for (int a = 0; a < N; a++) strides[a][ndim] = 1;
      shape[ndim++] = 1;
    }
    length = shape[--ndim];
    for (int axis = 0; axis < ndim; axis++) count *= shape[axis];
  }

  // Where run `index` starts in each array, in elements.
  PLAIT_HOST_DEVICE void offsets(int64_t index, int64_t (&offset)[N]) const {
    for (int a = 0; a < N; a++) offset[a] = 0;
    for (int axis = ndim - 1; axis >= 0; axis--) {
      for (int a = 0; a < N; a++) offset[a] += index % shape[axis] * strides[a][axis];
      index /= shape[axis];
    }
  }
};

}  // namespace plait
