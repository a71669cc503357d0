// Copies between any addresses, by all threads of a block or some: 16 bytes at a time where both sides lie on such a boundary.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace plait {

template <class W, int TOGETHER>  // loads under way
__device__ __forceinline__ void copy_units(char* to, const char* from, int64_t units, int thread, int threads) {
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

__device__ __forceinline__ void copy_run(char* to, const char* from, int64_t bytes) {
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  const uintptr_t mixed = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  const int64_t wide = mixed % 16 == 0 ? bytes / 16 * 16 : 0;
  copy_units<uint4, 4>(to, from, wide / 16, thread, threads);
  const int64_t words = mixed % 4 == 0 ? (bytes - wide) / 4 * 4 : 0;
  copy_units<uint32_t, 1>(to + wide, from + wide, words / 4, thread, threads);
  copy_units<uint8_t, 1>(to + wide + words, from + wide + words, bytes - wide - words, thread, threads);
}

// Elements [first, first + count) of rows of `length` that are `pitch` apart.
template <class X>
__device__ __forceinline__ void copy_rows(X* to, const X* from, int64_t first, int64_t count, int64_t length, int64_t pitch) {
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[first + i + (first + i) / length * (pitch - length)];
}

}  // namespace plait
