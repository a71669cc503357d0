// Running statistics: one element of each op, every operation rounded to float32, and their checks. Both backends run these.
#pragma once
#include "core/expect.hpp"
#include "core/inline.hpp"

namespace plait {

struct Statistic {
  float factor, samples;
  PLAIT_INLINE float of(float x) const { return samples * (x * factor); }
};

struct MovingAverage {
  float count, momentum;
  PLAIT_INLINE float next(float total, float running) const { return running + momentum * (total / count - running); }
};

inline void check_statistic(const char* call, const char* name, const ConstArray& x, const ConstArray& out) {
  PLAIT_CHECK(x.ndim == 1 && out.ndim == 1 && x.shape[0] == out.shape[0] && x.contiguous() && out.contiguous() &&
                  x.dtype == DType::float32 && out.dtype == DType::float32,
              call, name, " is ", shape_text(x), " for ", shape_text(out), ": both must be contiguous float32 (C,)");
}

}  // namespace plait
