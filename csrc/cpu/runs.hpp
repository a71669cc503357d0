// Elementwise ops over strided arrays: axes that lie without gaps in every array are merged, then
// the last axis is cut into pieces of at most 8192 elements, which threads share.
#pragma once
#include <algorithm>

#include "core/array.hpp"
#include "cpu/expect.hpp"
#include "cpu/threads.hpp"

namespace plait {

template <int N>
class Runs {
 public:
  struct Piece {
    int64_t offset[N];
    int64_t length;
  };

  Runs(const char* call, const ConstArray* const (&arrays)[N]) {
    const ConstArray& x = *arrays[0];
    PLAIT_CHECK(x.dtype == DType::float32 || x.dtype == DType::bfloat16, call,
                "needs float32 or bfloat16, got ", shape_text(x));
    for (const ConstArray* a : arrays) {
      PLAIT_CHECK(a->ndim == x.ndim && std::equal(a->shape, a->shape + a->ndim, x.shape) &&
                      a->dtype == x.dtype,
                  call, "arrays differ: ", shape_text(x), " and ", shape_text(*a));
      expect_unit_last(call, "an array", *a);
    }
    for (int axis = 0; axis < x.ndim; axis++) {
      if (x.shape[axis] == 1) continue;
      bool merge = ndim_ > 0;
      for (int a = 0; merge && a < N; a++)
        merge = strides_[a][ndim_ - 1] == arrays[a]->strides[axis] * x.shape[axis];
      if (!merge) shape_[ndim_++] = 1;
      shape_[ndim_ - 1] *= x.shape[axis];
      for (int a = 0; a < N; a++) strides_[a][ndim_ - 1] = arrays[a]->strides[axis];
    }
    bool unit = ndim_ > 0;
    for (int a = 0; unit && a < N; a++) unit = strides_[a][ndim_ - 1] == 1;
    if (!unit) shape_[ndim_++] = 1;  // runs of one element: the last axis has length 1, and those before it have gaps
    length_ = shape_[--ndim_];
    for (int axis = 0; axis < ndim_; axis++) runs_ *= shape_[axis];
    per_run_ = (length_ + PIECE - 1) / PIECE;
  }

  int64_t pieces() const { return runs_ * per_run_; }

  Piece piece(int64_t index) const {
    Piece p = {};
    const int64_t start = index % per_run_ * PIECE;
    p.length = std::min(PIECE, length_ - start);
    for (int a = 0; a < N; a++) p.offset[a] = start;
    int64_t run = index / per_run_;
    for (int axis = ndim_ - 1; axis >= 0; axis--) {
      for (int a = 0; a < N; a++) p.offset[a] += run % shape_[axis] * strides_[a][axis];
      run /= shape_[axis];
    }
    return p;
  }

  template <class Body>
  void parallel(const Body& body) const {
    const int64_t grain = 1 + 16384 / std::max<int64_t>(1, std::min(PIECE, length_));
    parallel_for(pieces(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) body(piece(i));
    });
  }

 private:
  static constexpr int64_t PIECE = 8192;
  int ndim_ = 0;
  int64_t shape_[MAX_DIMS + 1] = {}, strides_[N][MAX_DIMS + 1] = {};
  int64_t runs_ = 1, length_ = 0, per_run_ = 0;
};

}  // namespace plait
