// Sums that no order of additions can change: a float32 is an integer times 2^-149, so limbs of 32
// bits hold any sum of them. What both backends share.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>

#include "core/math.hpp"
#include "core/ops.hpp"

namespace plait {

constexpr int64_t EXACT_CHUNK = 1024, EXACT_LANES = 16;

// What a float adds to the limbs: low to limb `place`, high to the next. An addition changes a limb by less than 2^32: 2^31
// additions fit. What is not finite adds 1 to the last limb.
struct LimbTerm {
  int place;
  int64_t low, high;
};
PLAIT_INLINE LimbTerm limb_term(float x) {
  const uint32_t u = math::bits_of(x);
  const int exponent = int(u >> 23 & 255);
  if (exponent == 255) return {LIMBS - 1, 1, 0};
  const uint64_t mantissa = (u & 0x7fffff) | (exponent ? 0x800000u : 0u);
  const int place = exponent ? exponent - 1 : 0;  // x = mantissa * 2^(place - 149)
  const uint64_t wide = mantissa << (place % 32);
  const int64_t low = int64_t(wide & 0xffffffffu), high = int64_t(wide >> 32);
  return {place / 32, u >> 31 ? -low : low, u >> 31 ? -high : high};
}

inline void check_limbs(const char* call, const ConstArray& limbs) {
  PLAIT_CHECK(limbs.ndim == 1 && limbs.shape[0] == LIMBS && limbs.contiguous(), call, "limbs is ", shape_text(limbs),
              ", must be (", LIMBS, ",) int64");
}

// Of limbs in the host's memory.
inline double nearest_double(const int64_t* x) {
  if (x[LIMBS - 1]) return std::numeric_limits<double>::quiet_NaN();
  uint32_t digits[LIMBS + 1];  // two's complement, then its magnitude
  int64_t carry = 0;
  for (int i = 0; i < LIMBS - 1; i++) {
    const int64_t low = (x[i] & 0xffffffff) + (carry & 0xffffffff);
    digits[i] = uint32_t(low);
    carry = (x[i] >> 32) + (carry >> 32) + (low >> 32);
  }
  digits[LIMBS - 1] = uint32_t(carry);
  digits[LIMBS] = uint32_t(carry >> 32);
  const bool negative = carry < 0;
  if (negative) {
    uint64_t one = 1;
    for (uint32_t& digit : digits) {
      one += uint32_t(~digit);
      digit = uint32_t(one);
      one >>= 32;
    }
  }
  int top = LIMBS;
  while (top > 0 && digits[top] == 0) top--;
  // The leading 64 bits, of which the last also stands for everything below: one rounding, to
  // nearest even.
  auto digit = [&](int i) { return i >= 0 ? uint64_t(digits[i]) : 0; };
  uint64_t lead = digit(top) << 32 | digit(top - 1), rest = digit(top - 2) << 32;
  int shift = 0;
  while (lead && !(lead >> 63)) lead = lead << 1 | rest >> 63, rest <<= 1, shift++;
  for (int i = top - 3; i >= 0; i--) rest |= digits[i];
  const double value = double(lead | uint64_t(rest != 0));
  return std::ldexp(negative ? -value : value, 32 * (top - 1) - shift - 149);
}

}  // namespace plait
