// A correctly rounded float32 fused multiply-add for the portable path, also where the compiler may not use an FMA
// instruction: libm's fmaf is a call for every element there, this vectorises.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace plait {

// The product is exact in double. Its sum with c is rounded to odd, which makes the second rounding, to float, correct
// (Boldo and Melquiond 2008). Infinity and NaN pass: their error term is NaN, which is neither below nor above 0.
inline float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  const double p = double(a) * double(b), x = c;
  const double sum = p + x;
  const double from_x = sum - p;
  const double error = (p - (sum - from_x)) + (x - from_x);
  int64_t bits;
  std::memcpy(&bits, &sum, 8);
  // An even last bit moves one step towards the error; the sign of sum decides which way that is in bits.
  const int64_t inexact = int64_t(error > 0.0) | int64_t(error < 0.0);
  const int64_t away = int64_t((error > 0.0) == (sum > 0.0));
  bits += (inexact & ~bits & 1) * (2 * away - 1);
  double odd;
  std::memcpy(&odd, &bits, 8);
  return float(odd);
#endif
}

}  // namespace plait
