// Normal numbers from pairs of random words, and what dropout asks of its arguments: the same on both backends. No libm: its
// log and cos differ from one version to the next.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/array.hpp"
#include "core/inline.hpp"

namespace plait {

// ln(x) for normal x > 0, error below 2 units in the last place: x = 2^e m with m in [sqrt(1/2),
// sqrt(2)), ln m = 2 artanh(f), f = (m - 1) / (m + 1).
PLAIT_INLINE double natural_log(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  const uint64_t above = bits - 0x3fe6a09e667f3bcdull;  // bits of sqrt(1/2)
  const int64_t exponent = int64_t(above) >> 52;
  bits -= uint64_t(exponent) << 52;
  double m;
  std::memcpy(&m, &bits, 8);
  const double f = (m - 1.0) / (m + 1.0), s = f * f;
  double p = 1.0 / 23;
  p = p * s + 1.0 / 21, p = p * s + 1.0 / 19, p = p * s + 1.0 / 17, p = p * s + 1.0 / 15,
  p = p * s + 1.0 / 13;
  p = p * s + 1.0 / 11, p = p * s + 1.0 / 9, p = p * s + 1.0 / 7, p = p * s + 1.0 / 5,
  p = p * s + 1.0 / 3;
  const double e = double(int32_t(exponent));
  return e * 0.6931471805599453 + (2.0 * f + 2.0 * f * (p * s));
}

// Sine and cosine of 2 pi turns / 2^32, by Taylor series in the eighth of a turn around a multiple
// of pi / 2.
PLAIT_INLINE void sine_cosine(uint32_t turns, double* sine, double* cosine) {
  const uint32_t quarter = (turns + 0x20000000u) >> 30;
  const double x = double(int32_t(turns - (quarter << 30))) * (6.283185307179586 / 4294967296.0),
               s = x * x;
  double a = -1.0 / 1307674368000.0;
  a = a * s + 1.0 / 6227020800.0, a = a * s - 1.0 / 39916800.0, a = a * s + 1.0 / 362880.0;
  a = a * s - 1.0 / 5040.0, a = a * s + 1.0 / 120.0, a = a * s - 1.0 / 6.0;
  a = x + x * (a * s);
  double b = 1.0 / 20922789888000.0;
  b = b * s - 1.0 / 87178291200.0, b = b * s + 1.0 / 479001600.0, b = b * s - 1.0 / 3628800.0;
  b = b * s + 1.0 / 40320.0, b = b * s - 1.0 / 720.0, b = b * s + 1.0 / 24.0, b = b * s - 0.5;
  b = 1.0 + b * s;
  const double swapped_sine = quarter & 1 ? b : a, swapped_cosine = quarter & 1 ? a : b;
  *sine = quarter & 2 ? -swapped_sine : swapped_sine;
  *cosine = (quarter + 1) & 2 ? -swapped_cosine : swapped_cosine;
}

// Box and Muller (1958): words (u, v) of a pair give sqrt(-2 ln((u + 1/2) / 2^32)) times cosine and
// sine of v / 2^32 turns. In double, rounded to float32 once, after mean and std.
PLAIT_INLINE void normal_pair(uint32_t word, uint32_t turns, float mean, float std, float* out) {
  const double u = (double(word) + 0.5) * (1.0 / 4294967296.0);
  const double radius = std::sqrt(-2.0 * natural_log(u)) * double(std);
  double sine, cosine;
  sine_cosine(turns, &sine, &cosine);
  out[0] = float(double(mean) + radius * cosine);
  out[1] = float(double(mean) + radius * sine);
}

inline void check_random_normal(int64_t first_index, const Array& out) {
  constexpr int64_t largest = std::numeric_limits<int64_t>::max() - 256;  // indices are made in blocks of 256
  PLAIT_CHECK(first_index >= 0 && first_index <= largest - out.size(), "random_normal", "first_index is ", first_index,
              ", must not be negative, nor so large that indices overflow");
  PLAIT_CHECK(out.contiguous(), "random_normal", "out ", shape_text(out), " must be contiguous");
}

// An element is kept if its word is at least `threshold`, and then multiplied by `scale`.
struct DropoutRule {
  uint32_t threshold;
  float scale;
};
inline DropoutRule dropout_rule(const ConstArray& x, float probability, const Array& out) {
  PLAIT_CHECK(probability >= 0.0f && probability < 1.0f, "dropout", "probability is ", probability, ", must be in [0, 1)");
  PLAIT_CHECK(x.ndim == 3 && out.ndim == 3 && std::equal(x.shape, x.shape + 3, out.shape) && x.dtype == out.dtype, "dropout",
              "x is ", shape_text(x), " and out is ", shape_text(out), ", must be the same (B, S, C)");
  PLAIT_CHECK(x.size() == 0 || x.shape[2] == 1 || x.strides[2] == 1, "dropout",
              "the last axis of x must have stride 1, got ", x.strides[2], " in ", shape_text(x));
  PLAIT_CHECK(out.contiguous(), "dropout", "out ", shape_text(out), " must be contiguous");
  return {uint32_t(double(probability) * 4294967296.0),  // exact: probability has 24 bits
          float(1.0 / (1.0 - double(probability)))};
}

}  // namespace plait
