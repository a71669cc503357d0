// exp, log, sine and cosine of our own: libm's bits differ from version to version. Only additions, multiplications, fused
// multiply-adds and selects, so loops vectorise and every instruction path gives the same bits. Polynomials: minimax.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/isa.hpp"

namespace plait::math {

template <class To, class From>
PLAIT_INLINE To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

PLAIT_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
PLAIT_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

constexpr float INF = __builtin_inff();

// e^x within 1 ulp. Below 2^-125 it is 0; above the largest float, infinity; NaN stays NaN; exp(0) is 1.
// x = n ln 2 + r, |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to n and leaves n in the low bits.
PLAIT_INLINE float exp(float x) {
  const float shifted = fma(x, 1.44269504f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  const float r = fma(n, 2.12194440e-4f, fma(n, -0.693359375f, x));
  float p = 0.0027628641109913588f;  // 2 e^r, so that the scale 2^(n-1) is finite up to the largest float
  p = fma(p, r, 0.01673770137131214f);
  p = fma(p, r, 0.08333680033683777f);
  p = fma(p, r, 0.3333303928375244f);
  p = fma(p, r, 0.9999998807907104f);
  p = fma(p, r, 2.0f);
  p = fma(p, r, 2.0f);
  const float scale = bits_as<float>((bits_as<uint32_t>(shifted) << 23) + (126u << 23));
  const float y = x < -86.643397f ? 0.0f : p * scale;
  return x > 88.722839f ? INF : y;
}

// ln x within 1 ulp; log(0) is -infinity, of negative numbers and NaN it is NaN. Subnormals are exact inputs.
// x = 2^e (1 + f), 1 + f between sqrt(1/2) and sqrt(2).
PLAIT_INLINE float log(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float y = tiny ? x * 8388608.0f : x;
  const uint32_t u = bits_as<uint32_t>(y) - 0x3f3504f3u;  // 0 at sqrt(1/2)
  const float e = float(int32_t(u) >> 23) - (tiny ? 23.0f : 0.0f);
  const float f = bits_as<float>((u & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  float p = -0.07634497433900833f;
  p = fma(p, f, 0.1276157796382904f);
  p = fma(p, f, -0.13160182535648346f);
  p = fma(p, f, 0.14201757311820984f);
  p = fma(p, f, -0.16623356938362122f);
  p = fma(p, f, 0.20001226663589478f);
  p = fma(p, f, -0.2500081956386566f);
  p = fma(p, f, 0.3333333134651184f);
  p = fma(p, f, -0.5f);
  const float small = fma(e, -2.12194440e-4f, (f * f) * p);
  float r = fma(e, 0.693359375f, f + small);
  r = x == INF ? x : r;
  r = x == 0.0f ? -INF : r;
  return x >= 0.0f ? r : __builtin_nanf("");
}

// 1 / (1 + e^-x) and its complement, both with full relative accuracy.
struct Sigmoid {
  float value, complement;
};
PLAIT_INLINE Sigmoid sigmoid(float x) {
  const float e = exp(x > 0.0f ? -x : x);
  const float large = 1.0f / (1.0f + e), small = e * large;
  return x > 0.0f ? Sigmoid{large, small} : Sigmoid{small, large};
}

// Sine and cosine of a double angle in radians, |x| < 2^31 or so, to 1e-10 + |x| 2^-53; then rounded to float.
// x = n pi/2 + r, |r| <= pi/4, with pi/2 in two doubles; the quadrant n mod 4 swaps and negates.
struct SineCosine {
  float sine, cosine;
};
PLAIT_INLINE SineCosine sine_cosine(double x) {
  const double shifted = fma(x, 0.63661977236758134308, 6755399441055744.0);
  const double n = shifted - 6755399441055744.0;
  const double r = fma(n, -6.123233995736766e-17, fma(n, -1.5707963267948966, x));
  const double z = r * r;
  double s = 2.715935065197198e-06;
  s = fma(s, z, -0.00019839034891712352);
  s = fma(s, z, 0.00833332820817082);
  s = fma(s, z, -0.16666666627689458);
  s = fma(s * z, r, r);
  double c = -2.720954775018838e-07;
  c = fma(c, z, 2.479951176379435e-05);
  c = fma(c, z, -0.0013888883722622514);
  c = fma(c, z, 0.04166666662247702);
  c = fma(c, z, -0.5);
  c = fma(c, z, 1.0);
  const uint64_t quadrant = bits_as<uint64_t>(shifted);
  const uint64_t swap = uint64_t(0) - (quadrant & 1);
  const uint64_t s_bits = bits_as<uint64_t>(s), c_bits = bits_as<uint64_t>(c);
  const uint64_t sine = (s_bits & ~swap) | (c_bits & swap), cosine = (c_bits & ~swap) | (s_bits & swap);
  const uint64_t sine_sign = (quadrant & 2) << 62, cosine_sign = ((quadrant + 1) & 2) << 62;
  return {float(bits_as<double>(sine ^ sine_sign)), float(bits_as<double>(cosine ^ cosine_sign))};
}

}  // namespace plait::math
