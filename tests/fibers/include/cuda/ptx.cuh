// cuda/ptx.cuh on fibers: what each instruction does, by PTX's description of it.
#pragma once
#include <cstdint>

#include "core/dtype.hpp"
#include "cuda_runtime.h"

namespace plait {

inline bfloat16 rounded(float x) { return from_float<bfloat16>(x); }
inline uint32_t rounded_pair(float low, float high) { return uint32_t(rounded(low).bits) | uint32_t(rounded(high).bits) << 16; }

inline float max_or_nan(float x, float y) { return x != x || y != y ? __uint_as_float(0x7fffffffu) : x < y ? y : x; }
inline void prefetch_l2(const void*) {}
inline int64_t opaque(int64_t x) { return x; }

}  // namespace plait
