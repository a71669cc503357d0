// Arithmetic on one float that kernels are written with; cpu/vec.hpp has the same on vectors of floats.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/inline.hpp"

namespace plait {

// x in every lane.
template <class V>
PLAIT_INLINE V all(float x);
template <>
PLAIT_INLINE float all<float>(float x) {
  return x;
}

// a * b + c, rounded once.
PLAIT_INLINE float fma(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return ::fmaf(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
PLAIT_INLINE double fma(double a, double b, double c) {
#ifdef __CUDA_ARCH__
  return ::fma(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

}  // namespace plait
