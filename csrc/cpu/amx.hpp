// The tile operations that a matrix multiplication needs, twice: as AMX's instructions, and in
// plain C++ as they are documented. Both know 8 tiles of 16 rows of 64 bytes, in the calling thread.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/isa.hpp"

namespace plait {

constexpr int AMX_ROWS = 16;   // of a tile
constexpr int AMX_WORDS = 16;  // of 4 bytes in a row: floats, or pairs of bfloat16

#if defined(__x86_64__) && !defined(PLAIT_NO_AMX)

// Written out, as compilers before GCC 11 do not know them. They keep no values in tiles.
struct AmxTiles {
  static void configure() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const config;
    static_assert(sizeof(config) == 64, "what ldtilecfg reads");
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  static void release() { asm volatile("tilerelease"); }

  template <int TILE>
  PLAIT_INLINE static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
  }
  // `stride` words from row to row.
  template <int TILE>
  PLAIT_INLINE static void load(const float* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
                 :
                 : "r"(from), "r"(4 * stride), "i"(TILE)
                 : "memory");
  }
  template <int TILE>
  PLAIT_INLINE static void store(float* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                 :
                 : "r"(to), "r"(4 * stride), "i"(TILE)
                 : "memory");
  }
  template <int SUM, int A, int B>
  PLAIT_INLINE static void add_product() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
  }
  PLAIT_INLINE static void prefetch(const float* line) { __builtin_prefetch(line); }
};

#endif

// Throws where the processor would: no tiles are configured. And where they already are, which
// tells of a missing release.
struct EmulatedTiles {
  static void configure();
  static void release();
  template <int TILE>
  static void zero() {
    std::memset(tile(TILE), 0, sizeof(float) * AMX_ROWS * AMX_WORDS);
  }
  template <int TILE>
  static void load(const float* from, int64_t stride) {
    for (int i = 0; i < AMX_ROWS; i++)
      std::memcpy(tile(TILE) + i * AMX_WORDS, from + i * stride, sizeof(float) * AMX_WORDS);
  }
  template <int TILE>
  static void store(float* to, int64_t stride) {
    for (int i = 0; i < AMX_ROWS; i++)
      std::memcpy(to + i * stride, tile(TILE) + i * AMX_WORDS, sizeof(float) * AMX_WORDS);
  }
  template <int SUM, int A, int B>
  static void add_product() {
    add_product(tile(SUM), tile(A), tile(B));
  }
  static void prefetch(const float*) {}

 private:
  static float* tile(int i);
  static void add_product(float* sum, const float* a, const float* b);
};

}  // namespace plait
