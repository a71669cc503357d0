// N consecutive elements of float32 or bfloat16, moved as one access of up to 16 bytes, used as floats; or of int32.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/ptx.cuh"

namespace plait {

template <class T>
constexpr int PACK = 16 / int(sizeof(T));

template <int BYTES>
struct Words;
template <>
struct Words<32> {  // two accesses
  struct type {
    uint4 low, high;
  };
};
template <>
struct Words<16> {
  using type = uint4;
};
template <>
struct Words<8> {
  using type = uint2;
};
template <>
struct Words<4> {
  using type = uint32_t;
};
template <>
struct Words<2> {
  using type = uint16_t;
};

template <int N>
__device__ __forceinline__ void load_pack(const float* from, float (&x)[N]) {
  using W = typename Words<N * 4>::type;
  union {
    W words;
    float values[N];
  } u;
  u.words = *reinterpret_cast<const W*>(from);
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = u.values[i];
}
template <int N>
__device__ __forceinline__ void store_pack(float* to, const float (&x)[N]) {
  using W = typename Words<N * 4>::type;
  union {
    W words;
    float values[N];
  } u;
#pragma unroll
  for (int i = 0; i < N; i++) u.values[i] = x[i];
  *reinterpret_cast<W*>(to) = u.words;
}
template <int N>
__device__ __forceinline__ void load_pack(const int32_t* from, int32_t (&x)[N]) {
  using W = typename Words<N * 4>::type;
  union {
    W words;
    int32_t values[N];
  } u;
  u.words = *reinterpret_cast<const W*>(from);
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = u.values[i];
}
template <int N>
__device__ __forceinline__ void store_pack(int32_t* to, const int32_t (&x)[N]) {
  using W = typename Words<N * 4>::type;
  union {
    W words;
    int32_t values[N];
  } u;
#pragma unroll
  for (int i = 0; i < N; i++) u.values[i] = x[i];
  *reinterpret_cast<W*>(to) = u.words;
}
template <int N>
__device__ __forceinline__ void load_pack(const bfloat16* from, float (&x)[N]) {
  if constexpr (N == 1) {
    x[0] = to_float(*from);
  } else {
    using W = typename Words<N * 2>::type;
    union {
      W words;
      uint32_t pairs[N / 2];
    } u;
    u.words = *reinterpret_cast<const W*>(from);
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      x[2 * i] = __uint_as_float(u.pairs[i] << 16);
      x[2 * i + 1] = __uint_as_float(u.pairs[i] & 0xffff0000u);
    }
  }
}
template <int N>
__device__ __forceinline__ void store_pack(bfloat16* to, const float (&x)[N]) {
  if constexpr (N == 1) {
    *to = rounded(x[0]);
  } else {
    using W = typename Words<N * 2>::type;
    union {
      W words;
      uint32_t pairs[N / 2];
    } u;
#pragma unroll
    for (int i = 0; i < N / 2; i++) u.pairs[i] = rounded_pair(x[2 * i], x[2 * i + 1]);
    *reinterpret_cast<W*>(to) = u.words;
  }
}

// x as store_pack and load_pack would leave it.
template <class T>
__device__ __forceinline__ float as_stored(float x) {
  if constexpr (sizeof(T) == sizeof(float))
    return x;
  else
    return to_float(rounded(x));
}

// Whether every pack of N elements that starts at a multiple of N lies on a boundary of its own size.
template <class T>
bool pack_aligned(const void* data, int64_t stride, int n = PACK<T>) {
  return reinterpret_cast<uintptr_t>(data) % (n * sizeof(T)) == 0 && stride % n == 0;
}

}  // namespace plait
