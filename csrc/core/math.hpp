// exp, log, sigmoid, sine and cosine of our own: libm's bits differ from version to version. F is
// float or a vector of cpu/vec.hpp (then include cpu/math.hpp). Only + - * /, fused multiply-adds and
// selects, so every instruction path, and a GPU, gives the same bits. Polynomials are minimax.
#pragma once
#include "core/scalar.hpp"

namespace plait::math {

constexpr float INF = __builtin_inff();

PLAIT_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
PLAIT_INLINE uint64_t bits_of(double x) {
  uint64_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
PLAIT_INLINE float of_bits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}
PLAIT_INLINE double of_bits(uint64_t u) {
  double x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

// p r + c with a constant c.
template <class F>
PLAIT_INLINE F step(F p, F r, float c) {
  return fma(p, r, all<F>(c));
}

// e^x within 1 ulp for x up to 88.7, and NaN: below 2^-125 it is 0; exp(0) is 1. x = n ln 2 + r,
// |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to n and leaves n in the low bits.
template <class F>
PLAIT_INLINE F exp_finite(F x) {
  const F shifted = fma(x, all<F>(1.44269504f), all<F>(12582912.0f));
  const F n = shifted - 12582912.0f;
  const F r = fma(n, all<F>(2.12194440e-4f), fma(n, all<F>(-0.693359375f), x));
  F p = all<F>(0.0027628641109913588f);  // 2 e^r, so that the scale 2^(n-1) is finite up to the
                                         // largest float
  p = step(p, r, 0.01673770137131214f);
  p = step(p, r, 0.08333680033683777f);
  p = step(p, r, 0.3333303928375244f);
  p = step(p, r, 0.9999998807907104f);
  p = step(p, r, 2.0f);
  p = step(p, r, 2.0f);
  const F scale = of_bits((bits_of(shifted) << 23) + (126u << 23));
  return x < -86.643397f ? all<F>(0.0f) : p * scale;
}

// e^x for any x: above the largest float it is infinity.
template <class F>
PLAIT_INLINE F exp(F x) {
  const F y = exp_finite(x);
  return x > 88.722839f ? all<F>(INF) : y;
}

// ln x within 1 ulp; log(0) is -infinity, of negative numbers and NaN it is NaN.
// x = 2^e (1 + f), 1 + f between sqrt(1/2) and sqrt(2); subnormals are scaled up first.
PLAIT_INLINE float log(float x) {
  const bool subnormal = x < 1.17549435e-38f;
  const uint32_t u = bits_of(subnormal ? x * 8388608.0f : x) - 0x3f3504f3u;  // 0 at sqrt(1/2)
  const float e = float((int32_t(u) >> 23) - (subnormal ? 23 : 0));
  const float f = of_bits((u & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  float p = -0.07634497433900833f;
  p = step(p, f, 0.1276157796382904f);
  p = step(p, f, -0.13160182535648346f);
  p = step(p, f, 0.14201757311820984f);
  p = step(p, f, -0.16623356938362122f);
  p = step(p, f, 0.20001226663589478f);
  p = step(p, f, -0.2500081956386566f);
  p = step(p, f, 0.3333333134651184f);
  p = step(p, f, -0.5f);
  const float small = fma(e, -2.12194440e-4f, (f * f) * p);
  float r = fma(e, 0.693359375f, f + small);
  r = x == INF ? x : r;
  r = x == 0.0f ? -INF : r;
  return x >= 0.0f ? r : __builtin_nanf("");
}

// 1 / (1 + e^-x) and its complement, both with full relative accuracy.
template <class F>
struct Sigmoid {
  F value, complement;
};
template <class F>
PLAIT_INLINE Sigmoid<F> sigmoid(F x) {
  const F e = exp(x > 0.0f ? -x : x);
  const F large = 1.0f / (1.0f + e), small = e * large;
  return {x > 0.0f ? large : small, x > 0.0f ? small : large};
}

// Sine and cosine of a double angle in radians, |x| < 2^31 or so, to 1e-10 + |x| 2^-53; then
// rounded to float. x = n pi/2 + r, |r| <= pi/4, with pi/2 in two doubles; the quadrant n mod 4
// swaps and negates.
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
  const uint64_t quadrant = bits_of(shifted);
  const uint64_t swap = uint64_t(0) - (quadrant & 1);
  const uint64_t s_bits = bits_of(s), c_bits = bits_of(c);
  const uint64_t sine = (s_bits & ~swap) | (c_bits & swap),
                 cosine = (c_bits & ~swap) | (s_bits & swap);
  const uint64_t sine_sign = (quadrant & 2) << 62, cosine_sign = ((quadrant + 1) & 2) << 62;
  return {float(of_bits(sine ^ sine_sign)), float(of_bits(cosine ^ cosine_sign))};
}

}  // namespace plait::math
