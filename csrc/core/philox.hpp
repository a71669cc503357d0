// Philox 4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw (SC 2011): any word
// of any stream is computed alone. How plait numbers them:
// - random_normal: key = seed, counter = (index / 4, stream); a pair of elements takes the two words
//   at its place in the block (cpu/random.cpp says how).
// - dropout: key = the first two words of the block with key = seed, counter = (step, layer); then
//   counter = (element / 4, sample), and element e of a sample takes word e % 4.
// A 64-bit number is two words, low first; negative numbers count as their two's complement.
#pragma once
#include <cstdint>

#include "core/inline.hpp"

namespace plait {

struct PhiloxBlock {
  uint32_t word[4];
};

constexpr uint32_t PHILOX_MULTIPLIER_0 = 0xD2511F53u, PHILOX_MULTIPLIER_1 = 0xCD9E8D57u;
constexpr uint32_t PHILOX_WEYL_0 = 0x9E3779B9u, PHILOX_WEYL_1 = 0xBB67AE85u;
constexpr int PHILOX_ROUNDS = 10;

// counter = (low, high), key: 128 and 64 bits.
PLAIT_HOST_DEVICE inline PhiloxBlock philox(uint64_t low, uint64_t high, uint64_t key) {
  uint32_t c0 = uint32_t(low), c1 = uint32_t(low >> 32), c2 = uint32_t(high),
           c3 = uint32_t(high >> 32);
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < PHILOX_ROUNDS; round++) {
    const uint64_t p0 = uint64_t(PHILOX_MULTIPLIER_0) * c0, p1 = uint64_t(PHILOX_MULTIPLIER_1) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += PHILOX_WEYL_0, k1 += PHILOX_WEYL_1;
  }
  return {{c0, c1, c2, c3}};
}

PLAIT_HOST_DEVICE inline uint64_t dropout_key(int64_t seed, int64_t step, int64_t layer) {
  const PhiloxBlock block = philox(uint64_t(step), uint64_t(layer), uint64_t(seed));
  return uint64_t(block.word[1]) << 32 | block.word[0];
}

}  // namespace plait
