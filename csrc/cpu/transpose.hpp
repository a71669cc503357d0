// Eight by eight words change rows and columns, in compiler vectors.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/dtype.hpp"
#include "cpu/isa.hpp"

namespace plait {

typedef uint32_t Word8 __attribute__((vector_size(32)));
typedef uint64_t Long2 __attribute__((vector_size(16)));
typedef uint16_t Short8 __attribute__((vector_size(16)));

#if defined(__clang__)
#define PLAIT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PLAIT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Word8{__VA_ARGS__})
#endif

// Rows become columns: pairs, then quadruples, then halves change places.
PLAIT_INLINE void transpose(Word8 (&r)[8]) {
  Word8 t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    t[i] = PLAIT_SHUFFLE(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = PLAIT_SHUFFLE(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = PLAIT_SHUFFLE(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      r[i + 2 * j + 1] = PLAIT_SHUFFLE(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
#pragma GCC unroll 8
  for (int i = 0; i < 4; i++) {
    t[i] = PLAIT_SHUFFLE(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[i + 4] = PLAIT_SHUFFLE(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) r[i] = t[i];
}

// Each in a word of its own.
template <int WIDTH>
PLAIT_INLINE Word8 words(const bfloat16* x) {
  Short8 s;
  if (WIDTH == 8) {
    std::memcpy(&s, x, 16);
  } else {  // in halves: a vector that is put together in memory would be waited for
    uint64_t halves[2] = {};
    std::memcpy(&halves[0], x, (WIDTH < 4 ? WIDTH : 4) * sizeof(bfloat16));
    if (WIDTH > 4) std::memcpy(&halves[1], x + 4, (WIDTH - 4) * sizeof(bfloat16));
    s = Short8(Long2{halves[0], halves[1]});
  }
  return __builtin_convertvector(s, Word8);
}

}  // namespace plait
