// Correctly rounded float32 fused multiply-add for the portable path, four at a time, also where
// the compiler may use no FMA instruction: libm's fmaf would be a call for every element there.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/isa.hpp"

namespace plait {

typedef float Float4 __attribute__((vector_size(16)));

#if defined(__x86_64__) && !defined(__FMA__)

// Two of them. The product is exact in double. Its sum with c is rounded to odd, which makes the
// second rounding, to float, correct (Boldo and Melquiond 2008). Infinity and NaN pass: their error
// term is NaN, neither below nor above 0.
PLAIT_INLINE __m128 fused_pair(__m128 a, __m128 b, __m128 c) {
  const __m128d p = _mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b)), x = _mm_cvtps_pd(c);
  const __m128d sum = _mm_add_pd(p, x), from_x = _mm_sub_pd(sum, p);
  const __m128d error = _mm_add_pd(_mm_sub_pd(p, _mm_sub_pd(sum, from_x)), _mm_sub_pd(x, from_x));
  const __m128d zero = _mm_setzero_pd();
  const __m128i differs =
      _mm_castpd_si128(_mm_or_pd(_mm_cmplt_pd(error, zero), _mm_cmpgt_pd(error, zero)));
  const __m128i inexact = _mm_srli_epi64(differs, 63);
  // Towards zero, which is one step in bits where error and sum differ in sign; then the last bit
  // says "and more".
  const __m128i against = _mm_srli_epi64(_mm_castpd_si128(_mm_xor_pd(sum, error)), 63);
  const __m128i bits = _mm_sub_epi64(_mm_castpd_si128(sum), _mm_and_si128(inexact, against));
  return _mm_cvtpd_ps(_mm_castsi128_pd(_mm_or_si128(bits, inexact)));
}

PLAIT_INLINE Float4 fused(Float4 a, Float4 b, Float4 c) {
  const __m128 high = fused_pair(_mm_movehl_ps(a, a), _mm_movehl_ps(b, b), _mm_movehl_ps(c, c));
  return _mm_movelh_ps(fused_pair(a, b, c), high);
}

#else

PLAIT_INLINE Float4 fused(Float4 a, Float4 b, Float4 c) {
  for (int i = 0; i < 4; i++) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
}

#endif

// One of them, the same way; loops of it vectorise.
PLAIT_INLINE float fused(float a, float b, float c) {
#if defined(__x86_64__) && !defined(__FMA__)
  const double p = double(a) * double(b), x = c, sum = p + x, from_x = sum - p;
  const double error = (p - (sum - from_x)) + (x - from_x);
  uint64_t bits, error_bits;
  std::memcpy(&bits, &sum, 8);
  std::memcpy(&error_bits, &error, 8);
  const uint64_t inexact = uint64_t(error > 0.0) | uint64_t(error < 0.0);
  bits = (bits - (inexact & ((bits ^ error_bits) >> 63))) | inexact;
  double odd;
  std::memcpy(&odd, &bits, 8);
  return float(odd);
#else
  return std::fma(a, b, c);
#endif
}

}  // namespace plait
