// A matmul's epilogue: what rounded sums become, and a pass over sums that have just been stored. It reads them again from the
// cache they lie in: so it takes no registers while sums are held, and whole lines, whichever thread had what.
#pragma once
#include "core/activation.hpp"
#include "cuda/matmul_engine.hpp"
#include "cuda/pack.cuh"

namespace plait {

constexpr int AFTER_PACK = 8;  // elements of a pack

// x: sums as they are stored; other: what the epilogue's matrix has there, if it is read.
template <int N>
__device__ __forceinline__ void apply_after(After::Kind kind, float (&x)[N], const float (&other)[N]) {
  if (kind == After::gelu) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = Gelu::forward(x[i]);
  } else if (kind == After::gelu_backward) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = Gelu::backward(x[i], other[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = other[i] + x[i];
  }
}

// A matrix of which `count` of N elements from one on are moved: at once, where it is aligned and they are all there.
struct AfterMatrix {
  void* data;
  int64_t stride;
  bool half, packs;  // bfloat16, else float32; whether 8 elements from a multiple of 8 columns are aligned

  template <class T, int N>
  __device__ __forceinline__ void load(int64_t at, int count, float (&x)[N]) const {
    const T* const from = static_cast<const T*>(data) + at;
    if (packs && count == N) return load_pack(from, x);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = i < count ? to_float(from[i]) : 0.0f;
  }
  template <class T, int N>
  __device__ __forceinline__ void store(int64_t at, int count, const float (&x)[N]) const {
    T* const to = static_cast<T*>(data) + at;
    if (packs && count == N) return store_pack(to, x);
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float one[1] = {x[i]};
      if (i < count) store_pack(to + i, one);
    }
  }
  template <int N>
  __device__ __forceinline__ void load(int64_t row, int64_t column, int count, float (&x)[N]) const {
    const int64_t at = row * stride + column;
    half ? load<bfloat16>(at, count, x) : load<float>(at, count, x);
  }
  template <int N>
  __device__ __forceinline__ void store(int64_t row, int64_t column, int count, const float (&x)[N]) const {
    const int64_t at = row * stride + column;
    half ? store<bfloat16>(at, count, x) : store<float>(at, count, x);
  }
};

// What a kernel is told: out (m, n) holds the sums as stored.
struct AfterCall {
  After::Kind kind;
  AfterMatrix out, other;
  int64_t m, n;
};

inline AfterCall after_call(const MatmulProblem& p) {
  const bool half = p.out_dtype == DType::bfloat16;
  const auto matrix = [&](void* data, int64_t stride) -> AfterMatrix {
    if (p.m == 1) stride = 0;  // any would do
    return {data, stride, half, half ? pack_aligned<bfloat16>(data, stride) : pack_aligned<float>(data, stride)};
  };
  return {p.after.kind, matrix(p.out, p.row_stride_out), matrix(p.after.data, p.after.stride), p.m, p.n};
}

// Rows and columns of out, and which of how many threads that share them this one is.
struct AfterPart {
  int64_t row, column;
  int rows, columns, thread, threads;
};

// In packs of N. Between the threads that stored the part and this lies their barrier.
template <int N>
__device__ __forceinline__ void finish_part(const AfterCall& call, const AfterPart& part) {
  const int across = part.columns / N;
#pragma unroll 1
  for (int i = part.thread; i < part.rows * across; i += part.threads) {
    const int64_t row = part.row + i / across, column = part.column + i % across * N;
    if (row >= call.m || column >= call.n) continue;
    const int count = call.n - column < N ? int(call.n - column) : N;
    float x[N], y[N] = {};
    call.out.load(row, column, count, x);
    if (call.kind != After::gelu) call.other.load(row, column, count, y);
    apply_after(call.kind, x, y);
    (call.kind == After::gelu ? call.other : call.out).store(row, column, count, x);
  }
}

}  // namespace plait
