// Element types of plait arrays, and bfloat16 as 16 stored bits that widen to float.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/inline.hpp"

// Flags such as -ffast-math would leave the order of additions to the compiler.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || \
    (defined(__GCC_IEC_559) && __GCC_IEC_559 == 0)
#error "plait needs IEEE 754 arithmetic: take -ffast-math, -funsafe-math-optimizations and their like out of CXXFLAGS"
#endif

namespace plait {

enum class DType : int { float32, bfloat16, float16, int8, int16, int32, int64, uint8, uint16, uint32, uint64 };

constexpr int64_t size_of(DType t) {
  switch (t) {
    case DType::int8: case DType::uint8: return 1;
    case DType::bfloat16: case DType::float16: case DType::int16: case DType::uint16: return 2;
    case DType::float32: case DType::int32: case DType::uint32: return 4;
    default: return 8;
  }
}

const char* name_of(DType t);

struct bfloat16 {
  uint16_t bits;
};

PLAIT_HOST_DEVICE inline float to_float(float x) { return x; }
PLAIT_HOST_DEVICE inline float to_float(bfloat16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

template <class T>
PLAIT_HOST_DEVICE T from_float(float x);
template <>
PLAIT_HOST_DEVICE inline float from_float<float>(float x) { return x; }
// Round to nearest, ties to even; NaN stays a quiet NaN. Branch-free, so loops vectorise.
template <>
PLAIT_HOST_DEVICE inline bfloat16 from_float<bfloat16>(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  uint32_t nan = (u >> 16) | 0x40u;
  return bfloat16{uint16_t((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

template <class T> struct dtype_of;
template <> struct dtype_of<float> { static constexpr DType value = DType::float32; };
template <> struct dtype_of<bfloat16> { static constexpr DType value = DType::bfloat16; };
template <> struct dtype_of<int32_t> { static constexpr DType value = DType::int32; };
template <> struct dtype_of<int64_t> { static constexpr DType value = DType::int64; };
template <> struct dtype_of<uint8_t> { static constexpr DType value = DType::uint8; };

}  // namespace plait
