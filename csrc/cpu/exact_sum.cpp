// Sums that no order of additions can change: a float32 is an integer times 2^-149, so limbs of 32
// bits hold any sum of them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "core/ops.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t CHUNK = 1024, LANES = 16;

// Lane l takes elements l, l + 16, ...; then lanes fold in halves: l + (l + 8), l + (l + 4), l + (l
// + 2), l + (l + 1).
PLAIT_INLINE void chunk_sum_body(const float* x, int64_t n, bool squares, float* sum) {
  float lane[LANES] = {};
  int64_t i = 0;
  if (squares) {
    for (; i + LANES <= n; i += LANES)
      for (int l = 0; l < LANES; l++) lane[l] += x[i + l] * x[i + l];
  } else {
    for (; i + LANES <= n; i += LANES)
      for (int l = 0; l < LANES; l++) lane[l] += x[i + l];
  }
  for (int l = 0; i + l < n; l++) lane[l] += squares ? x[i + l] * x[i + l] : x[i + l];
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int l = 0; l < half; l++) lane[l] += lane[l + half];
  *sum = lane[0];
}

PLAIT_KERNEL(chunk_sum, chunk_sum_body)

// Limb i counts multiples of 2^(32 i - 149). An addition changes a limb by less than 2^32: 2^31
// additions fit.
void add_to_limbs(float x, int64_t* limbs) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const int exponent = int(u >> 23 & 255);
  if (exponent == 255) {
    limbs[LIMBS - 1]++;
    return;
  }
  const uint64_t mantissa = (u & 0x7fffff) | (exponent ? 0x800000u : 0u);
  const int place = exponent ? exponent - 1 : 0;  // x = mantissa * 2^(place - 149)
  const uint64_t wide = mantissa << (place % 32);
  const int64_t low = int64_t(wide & 0xffffffffu), high = int64_t(wide >> 32);
  int64_t* limb = limbs + place / 32;
  if (u >> 31)
    limb[0] -= low, limb[1] -= high;
  else
    limb[0] += low, limb[1] += high;
}

}  // namespace

void exact_sum(const ConstArray& x, bool squares, const Array& limbs) {
  PLAIT_CHECK(limbs.ndim == 1 && limbs.shape[0] == LIMBS && limbs.contiguous(), "exact_sum",
              "limbs is ", shape_text(limbs), ", must be (", LIMBS, ",) int64");
  PLAIT_CHECK(x.contiguous(), "exact_sum", "x ", shape_text(x), " must be contiguous");
  const float* data = x.as<float>();
  int64_t* total = limbs.as<int64_t>();
  std::mutex mutex;
  const int64_t size = x.size();
  parallel_for((size + CHUNK - 1) / CHUNK, 32, [&](int64_t begin, int64_t end) {
    int64_t mine[LIMBS] = {};
    for (int64_t chunk = begin; chunk < end; chunk++) {
      float sum;
      chunk_sum(data + chunk * CHUNK, std::min(CHUNK, size - chunk * CHUNK), squares, &sum);
      add_to_limbs(sum, mine);
    }
    std::lock_guard<std::mutex> lock(mutex);
    for (int i = 0; i < LIMBS; i++) total[i] += mine[i];
  });
}

double exact_value(const ConstArray& limbs) {
  PLAIT_CHECK(limbs.ndim == 1 && limbs.shape[0] == LIMBS && limbs.contiguous(), "exact_value",
              "limbs is ", shape_text(limbs), ", must be (", LIMBS, ",) int64");
  const int64_t* x = limbs.as<int64_t>();
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
