// How wgmma is told where an operand lies in shared memory.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace plait {

// Swizzled in 128 bytes, as TMA does it: 16-byte piece p of 128-byte line l lies at p ^ l % 8. If k_major, lines are rows of
// 64 k and a step along k of 16 is 32 bytes. Else lines are 64 rows of one k, blocks of 64 rows lie `block` bytes apart, and a
// step is 2048 bytes. The operand begins at a multiple of 1024 bytes, steps aside.
__host__ __device__ __forceinline__ constexpr uint64_t wgmma_operand(uint32_t address, bool k_major, uint32_t block) {
  const uint64_t leading = k_major ? 1 : block >> 4, eight_lines = 1024 >> 4, swizzle_128 = 1;
  return uint64_t((address & 0x3ffff) >> 4) | leading << 16 | eight_lines << 32 | swizzle_128 << 62;
}
// To add for the next 16 k.
__host__ __device__ __forceinline__ constexpr uint32_t wgmma_step(bool k_major) { return (k_major ? 32 : 2048) >> 4; }

}  // namespace plait
