// Sixteen float lanes with GNU vector extensions: one source for all instruction paths. The compiler lowers the
// operators after inlining into a PLAIT_KERNEL wrapper: one zmm, two ymm, or four 128-bit registers. Every lane
// operation rounds like its scalar, so the bits are equal on every path.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/dtype.hpp"
#include "cpu/isa.hpp"

namespace plait {

constexpr int64_t LANES = 16;
using Lanes = float __attribute__((vector_size(64)));
using IntLanes = int32_t __attribute__((vector_size(64)));
using UintLanes = uint32_t __attribute__((vector_size(64)));
using HalfLanes = uint16_t __attribute__((vector_size(32)));

PLAIT_INLINE Lanes spread(float x) { return Lanes{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
PLAIT_INLINE IntLanes lane_numbers() {
  return IntLanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}

PLAIT_INLINE Lanes load(const float* p) {
  using Memory = float __attribute__((vector_size(64), aligned(4), may_alias));
  return *reinterpret_cast<const Memory*>(p);
}
PLAIT_INLINE Lanes load(const bfloat16* p) {
  using Memory = uint16_t __attribute__((vector_size(32), aligned(2), may_alias));
  const HalfLanes half = *reinterpret_cast<const Memory*>(p);
  return Lanes(__builtin_convertvector(half, UintLanes) << 16);
}
PLAIT_INLINE void store(float* p, Lanes x) {
  using Memory = float __attribute__((vector_size(64), aligned(4), may_alias));
  *reinterpret_cast<Memory*>(p) = x;
}
// Rounds like from_float<bfloat16>.
PLAIT_INLINE void store(bfloat16* p, Lanes x) {
  using Memory = uint16_t __attribute__((vector_size(32), aligned(2), may_alias));
  const UintLanes u = UintLanes(x);
  const UintLanes rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const UintLanes nan = (u >> 16) | 0x40u;
  *reinterpret_cast<Memory*>(p) = __builtin_convertvector(x == x ? rounded : nan, HalfLanes);
}

// The first `count` lanes; memory beyond them is not touched, the other lanes load as +0.
template <class T>
PLAIT_INLINE Lanes load(const T* p, int64_t count) {
  if (count >= LANES) return load(p);
  T part[LANES] = {};
  std::memcpy(part, p, size_t(count) * sizeof(T));
  return load(part);
}
template <class T>
PLAIT_INLINE void store(T* p, Lanes x, int64_t count) {
  if (count >= LANES) return store(p, x);
  T part[LANES];
  store(part, x);
  std::memcpy(p, part, size_t(count) * sizeof(T));
}

PLAIT_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
  Lanes r;
  for (int i = 0; i < LANES; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
}
PLAIT_INLINE Lanes max(Lanes a, Lanes b) { return a > b ? a : b; }  // b where a is NaN
// Lanes at or beyond `count` become `other`.
PLAIT_INLINE Lanes keep(Lanes x, int64_t count, float other) {
  return lane_numbers() < int32_t(count) ? x : spread(other);
}

// --- reductions over a row -----------------------------------------------------------------------
// One order for every path, thread and length: element i goes to lane i mod 64, in ascending i, from zero; then lanes
// are added in halves: 64 to 16 as (a + b) + (c + d), then 8 + 8, 4 + 4, 2 + 2, 1 + 1. Lanes past the end add nothing.

PLAIT_INLINE float sum_lanes(Lanes x) {
  float s[LANES];
  store(s, x);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) s[i] += s[i + width];
  return s[0];
}
PLAIT_INLINE float max_lanes(Lanes x) {
  float s[LANES];
  store(s, x);
  for (int i = 1; i < LANES; i++) s[0] = s[i] > s[0] ? s[i] : s[0];
  return s[0];
}

// term(i, count) gives elements i .. i + count as Lanes.
template <class Term>
PLAIT_INLINE float sum_row(int64_t n, const Term& term) {
  Lanes a[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) a[j] += term(i + j * LANES, LANES);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const int64_t count = n - i - j * LANES;
    if (count >= LANES)
      a[j] += term(i + j * LANES, LANES);
    else if (count > 0)
      a[j] += keep(term(i + j * LANES, count), count, 0.0f);
  }
  return sum_lanes((a[0] + a[1]) + (a[2] + a[3]));
}

// out[i] = term(i) for a row of n.
template <class T, class Term>
PLAIT_INLINE void fill_row(int64_t n, T* out, const Term& term) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(out + i, term(i, LANES));
  if (i < n) store(out + i, term(i, n - i), n - i);
}

}  // namespace plait
