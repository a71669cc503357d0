// Copies between any addresses, by all threads of a block or a part of them: 16 bytes at a time where both sides lie on such
// a boundary.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace plait {

// Thread `thread` of `threads`.
template <class W>
__device__ __forceinline__ void copy_units(char* to, const char* from, int64_t units, int thread, int threads) {
  constexpr int TOGETHER = sizeof(W) == 16 ? 4 : 1;  // loads under way
  for (int64_t i = thread; i < units; i += TOGETHER * threads) {
    W some[TOGETHER];
#pragma unroll
    for (int k = 0; k < TOGETHER; k++)
      if (i + k * threads < units) some[k] = reinterpret_cast<const W*>(from)[i + k * threads];
#pragma unroll
    for (int k = 0; k < TOGETHER; k++)
      if (i + k * threads < units) reinterpret_cast<W*>(to)[i + k * threads] = some[k];
  }
}

__device__ __forceinline__ void copy_run(char* to, const char* from, int64_t bytes, int thread, int threads) {
  const uintptr_t mixed = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  const int64_t wide = mixed % 16 == 0 ? bytes / 16 * 16 : 0;
  copy_units<uint4>(to, from, wide / 16, thread, threads);
  const int64_t words = mixed % 4 == 0 ? (bytes - wide) / 4 * 4 : 0;
  copy_units<uint32_t>(to + wide, from + wide, words / 4, thread, threads);
  copy_units<uint8_t>(to + wide + words, from + wide + words, bytes - wide - words, thread, threads);
}
__device__ __forceinline__ void copy_run(char* to, const char* from, int64_t bytes) {
  copy_run(to, from, bytes, int(threadIdx.x), int(blockDim.x));
}

// Bytes [first, first + bytes) of rows of `length` that are `pitch` bytes apart: each warp takes parts of rows.
__device__ __forceinline__ void copy_rows(char* to, const char* from, int64_t first, int64_t bytes, int64_t length, int64_t pitch) {
  const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const int64_t last = first + bytes;
  for (int64_t row = first / length + warp; row * length < last; row += warps) {
    const int64_t start = row * length > first ? row * length : first;
    const int64_t stop = (row + 1) * length < last ? (row + 1) * length : last;
    copy_run(to + (start - first), from + row * pitch + (start - row * length), stop - start, int(threadIdx.x) % 32, 32);
  }
}

}  // namespace plait
