// Vectors of floats as wide as the instruction path's registers: kernels are templates over V,
// which is 16, 8 or 4 floats (GNU vector extensions: + - * / < ?: work on V). Every operation is
// lane by lane and rounds like its scalar, and sums over a row have 64 lanes whatever the width, so
// the bits are equal on every path.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/dtype.hpp"
#include "core/scalar.hpp"
#include "cpu/fma.hpp"
#include "cpu/isa.hpp"

namespace plait {

// Compilers take vector_size only with a literal number. Memory: the same at any address.
template <int LANES>
struct VectorOf;
#define PLAIT_VECTOR(LANES)                                                              \
  template <>                                                                            \
  struct VectorOf<LANES> {                                                               \
    using Floats = float __attribute__((vector_size(4 * LANES)));                        \
    using Uints = uint32_t __attribute__((vector_size(4 * LANES)));                      \
    using Memory = float __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); \
  };
PLAIT_VECTOR(16)
PLAIT_VECTOR(8)
PLAIT_VECTOR(4)
#undef PLAIT_VECTOR

using Floats16 = VectorOf<16>::Floats;
using Floats8 = VectorOf<8>::Floats;
using Floats4 = VectorOf<4>::Floats;

template <class V>
constexpr int64_t WIDTH = sizeof(V) / sizeof(float);
template <class V>
using Uints = typename VectorOf<WIDTH<V>>::Uints;

// PLAIT_VECTOR_KERNEL(name, body) is PLAIT_KERNEL for a body whose first template argument is the
// path's vector.
#if defined(__x86_64__)
#define PLAIT_VECTOR_KERNEL(name, body)                          \
  template <class... Args>                                       \
  PLAIT_TARGET_AVX512 void name##_avx512(Args... args) {         \
    body<::plait::Floats16>(args...);                            \
  }                                                              \
  template <class... Args>                                       \
  PLAIT_TARGET_AVX2 void name##_avx2(Args... args) {             \
    body<::plait::Floats8>(args...);                             \
  }                                                              \
  template <class... Args>                                       \
  __attribute__((noinline)) void name##_portable(Args... args) { \
    body<::plait::Floats4>(args...);                             \
  }                                                              \
  template <class... Args>                                       \
  void name(Args... args) {                                      \
    switch (::plait::vector_isa()) {                             \
      case ::plait::Isa::avx512:                                 \
        return name##_avx512(args...);                           \
      case ::plait::Isa::avx2:                                   \
        return name##_avx2(args...);                             \
      default:                                                   \
        return name##_portable(args...);                         \
    }                                                            \
  }
#else
#define PLAIT_VECTOR_KERNEL(name, body)               \
  template <class... Args>                            \
  __attribute__((noinline)) void name(Args... args) { \
    body<::plait::Floats4>(args...);                  \
  }
#endif

// --- arithmetic
// --------------------------------------------------------------------------------------

// x in every lane. Numbers known to the compiler become constants; others need the instruction, as
// initialiser lists of wide vectors go through memory.
template <class V>
PLAIT_INLINE V all(float x) {
#if defined(__x86_64__)
  if constexpr (WIDTH<V> > 4) {
    if (__builtin_constant_p(x)) return x - V{};  // x - 0 is x, also for -0
    V r;
    asm("vbroadcastss %1, %0" : "=v"(r) : "vm"(x));
    return r;
  }
#endif
  return x - V{};
}

// a * b + c, rounded once. The instruction is written out: -ffp-contract=off leaves vector
// operators unfused, and compilers turn loops of scalar fma into vectors only sometimes.
template <class V>
PLAIT_INLINE V fma(V a, V b, V c) {
#if defined(__x86_64__)
  if constexpr (WIDTH<V> > 4) {
    asm("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
  }
#endif
  for (int64_t l = 0; l < WIDTH<V>; l++) c[l] = fused(a[l], b[l], c[l]);
  return c;
}

// The larger; b where a is NaN.
template <class V>
PLAIT_INLINE V max(V a, V b) {
  return b < a ? a : b;
}

// --- memory
// --------------------------------------------------------------------------------------------

template <class V>
PLAIT_INLINE V load(const float* p) {
  return *reinterpret_cast<const typename VectorOf<WIDTH<V>>::Memory*>(p);
}
template <class V>
PLAIT_INLINE V load(const bfloat16* p) {
  Uints<V> u;
  for (int64_t l = 0; l < WIDTH<V>; l++) u[l] = uint32_t(p[l].bits) << 16;
  return V(u);
}
template <class V>
PLAIT_INLINE void store(float* p, V x) {
  *reinterpret_cast<typename VectorOf<WIDTH<V>>::Memory*>(p) = x;
}
// Rounds like from_float<bfloat16>, whose bits are the upper half.
template <class V>
PLAIT_INLINE Uints<V> rounded_bits(V x) {
  const Uints<V> u = Uints<V>(x);
  const Uints<V> rounded = u + 0x7fffu + ((u >> 16) & 1u), nan = u | 0x400000u;
  return x == x ? rounded : nan;
}
template <class V>
PLAIT_INLINE void store(bfloat16* p, V x) {
  const Uints<V> r = rounded_bits(x) >> 16;
  for (int64_t l = 0; l < WIDTH<V>; l++) p[l].bits = uint16_t(r[l]);
}
// x as store and load would leave it.
template <class T, class V>
PLAIT_INLINE V as_stored(V x) {
  if constexpr (sizeof(T) == sizeof(float))
    return x;
  else
    return V(rounded_bits(x) & 0xffff0000u);
}

// The first `count` lanes; memory beyond them is not touched, the other lanes load as +0.
template <class V, class T>
PLAIT_INLINE V load(const T* p, int64_t count) {
  if (count >= WIDTH<V>) return load<V>(p);
  T part[WIDTH<V>] = {};
  std::memcpy(part, p, size_t(count) * sizeof(T));
  return load<V>(part);
}
template <class T, class V>
PLAIT_INLINE void store(T* p, V x, int64_t count) {
  if (count >= WIDTH<V>) return store(p, x);
  T part[WIDTH<V>];
  store(part, x);
  std::memcpy(p, part, size_t(count) * sizeof(T));
}

template <class V>
PLAIT_INLINE V lane_numbers() {
  constexpr float numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load<V>(numbers);
}
// Lanes at or beyond `count` become `other`.
template <class V>
PLAIT_INLINE V keep(V x, int64_t count, float other) {
  return lane_numbers<V>() < all<V>(float(count)) ? x : all<V>(other);
}

// --- rows
// ---------------------------------------------------------------------------------------------- A
// term's at<V>(i, count) gives the elements i .. i + count of a row, the other lanes anything.

// The sum of lanes, folded in halves: l + (l + W/2), ..., l + (l + 2), l + (l + 1).
template <class V>
PLAIT_INLINE float fold(V x) {
  constexpr int64_t HALF = WIDTH<V> / 2;
  float s[WIDTH<V>];
  store(s, x);
  if constexpr (HALF >= 4) {
    using Half = typename VectorOf<HALF>::Floats;
    return fold(load<Half>(s) + load<Half>(s + HALF));
  } else {
    return (s[0] + s[2]) + (s[1] + s[3]);
  }
}

// The sum of a row. One order for every path, thread and length: element i goes to lane i mod 64,
// in ascending i, from +0; then lane l adds lane l + 32, then l + 16, l + 8, l + 4, l + 2, l + 1.
// Places past the end add nothing.
template <class V, class Term>
PLAIT_INLINE float sum_row(int64_t n, const Term& term) {
  constexpr int64_t SUMS = 64 / WIDTH<V>;
  V a[SUMS];
#pragma GCC unroll 16
  for (int64_t j = 0; j < SUMS; j++) a[j] = all<V>(0.0f);
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
#pragma GCC unroll 16
    for (int64_t j = 0; j < SUMS; j++) a[j] += term.template at<V>(i + j * WIDTH<V>, WIDTH<V>);
  }
  if (i < n) {
#pragma GCC unroll 16
    for (int64_t j = 0; j < SUMS; j++, i += WIDTH<V>)
      if (i < n) a[j] += keep(term.template at<V>(i, n - i), n - i, 0.0f);
  }
#pragma GCC unroll 4
  for (int64_t half = SUMS / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < half; j++) a[j] += a[j + half];
  }
  return fold(a[0]);
}

// The largest element, NaN skipped; -infinity if there is none.
template <class V, class Term>
PLAIT_INLINE float max_row(int64_t n, const Term& term) {
  const float infinity = __builtin_inff();
  V top[2] = {all<V>(-infinity), all<V>(-infinity)};
  int64_t i = 0;
  for (; i + 2 * WIDTH<V> <= n; i += 2 * WIDTH<V>) {
    top[0] = max(term.template at<V>(i, WIDTH<V>), top[0]);
    top[1] = max(term.template at<V>(i + WIDTH<V>, WIDTH<V>), top[1]);
  }
  for (; i < n; i += WIDTH<V>)
    top[0] = max(keep(term.template at<V>(i, n - i), n - i, -infinity), top[0]);
  float s[WIDTH<V>];
  store(s, max(top[0], top[1]));
  for (int64_t l = 1; l < WIDTH<V>; l++) s[0] = s[l] > s[0] ? s[l] : s[0];
  return s[0];
}

// out[i] = term(i) for a row of n.
template <class V, class T, class Term>
PLAIT_INLINE void fill_row(int64_t n, T* out, const Term& term) {
  int64_t i = 0;
  for (; i + WIDTH<V> <= n; i += WIDTH<V>) store(out + i, term.template at<V>(i, WIDTH<V>));
  if (i < n) store(out + i, term.template at<V>(i, n - i), n - i);
}

// The elements of a row as they are: a term of sums and maxima.
template <class T>
struct Value {
  const T* x;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    return load<V>(x + i, count);
  }
};

}  // namespace plait
