// Rotary position embedding (Su et al. 2021) as both backends compute it. Angles are formed in double: base^(-2i/D) once per
// call by our own log and exp series (relative error about 1e-15), times the position, reduced by
// pi/2 in two doubles; so cosine and sine are within 1e-7 at positions up to 1e6 and beyond.
#pragma once
#include <vector>

#include "core/expect.hpp"
#include "core/math.hpp"

namespace plait {

namespace series {
constexpr double LN2 = 0.69314718055994530942;

// ln x = e ln 2 + 2 artanh((m - 1) / (m + 1)), x = 2^e m, m between sqrt(1/2) and sqrt(2).
inline double natural_log(double x) {
  int e = 0;
  while (x > 1.4142135623730951) x *= 0.5, e++;
  while (x < 0.70710678118654752) x *= 2.0, e--;
  const double s = (x - 1.0) / (x + 1.0), z = s * s;
  double sum = 0.0;
  for (int k = 23; k > 0; k -= 2) sum = sum * z + 1.0 / k;
  return e * LN2 + 2.0 * s * sum;
}

// e^-x for x >= 0: 2^-n e^-r, 0 <= r < ln 2, by Taylor.
inline double exp_minus(double x) {
  const int n = int(x / LN2);
  const double r = x - n * LN2;
  double sum = 1.0;
  for (int k = 20; k > 0; k--) sum = 1.0 - sum * r / k;
  for (int i = 0; i < n; i++) sum *= 0.5;
  return sum;
}
}  // namespace series

// What a position turns each pair by, in radians. Checks the arguments of rope.
inline std::vector<double> rope_frequencies(const ConstArray& x, float base, const Array& out) {
  const char* call = "rope";
  expect_ndim(call, "x", x, 4);
  const int64_t size = x.shape[3], pairs = size / 2;
  expect_shape(call, "out", out, {x.shape[0], x.shape[1], x.shape[2], size});
  expect_dtype(call, "out", out, x.dtype);
  expect_unit_last(call, "x", x);
  expect_unit_last(call, "out", out);
  PLAIT_CHECK(size % 2 == 0, call, "the head size ", size, " is odd; pairs need an even one");
  PLAIT_CHECK(base >= 1.0f && base < math::INF, call, "base is ", base, ", expected at least 1");
  std::vector<double> frequency(static_cast<size_t>(pairs));
  for (int64_t i = 0; i < pairs; i++)
    frequency[size_t(i)] = series::exp_minus(2.0 * double(i) / double(size) * series::natural_log(base));
  return frequency;
}

// sign is -1 for the inverse.
PLAIT_INLINE void rope_angle(double frequency, double position, float sign, float* cosine, float* sine) {
  const math::SineCosine a = math::sine_cosine(frequency * position);
  *cosine = a.cosine;
  *sine = a.sine * sign;
}

template <class V>
PLAIT_INLINE void rotate_pair(V& a, V& b, V cosine, V sine) {
  const V before = a;
  a = fma(before, cosine, -(b * sine));
  b = fma(b, cosine, before * sine);
}

}  // namespace plait
