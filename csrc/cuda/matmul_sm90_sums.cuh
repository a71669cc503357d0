// A consumer's sums, 64 x N in the registers of 128 threads (as ptx_wgmma.cuh says which), between them and memory.
#pragma once
#include "cuda/matmul_sm90.cuh"
#include "cuda/ptx.cuh"
#include "cuda/ptx_sm90.cuh"

namespace plait {

// Where this thread's first sum lies in the matrix; the others are 8 rows below and 8, 16, ... columns to the right.
struct Corner {
  int row, column;
};
__device__ __forceinline__ Corner corner(const WgmmaItem& w, int consumer) {
  const int t = int(threadIdx.x) % GROUP;
  return {w.row + consumer * 64 + t / 32 * 16 + t % 32 / 4, w.column + t % 4 * 2};
}

// f(i, p): sums i and i + 1 are those of the pair of columns that p points to, `pair` or only the first of which is inside.
template <int N, class T, class F>
__device__ __forceinline__ void each_pair(const WgmmaArguments& g, Corner at, T* matrix, int64_t row_stride, F f) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (at.row + 8 * h >= g.m) break;
    T* const row = matrix + (at.row + 8 * h) * row_stride + at.column;
    const int left = g.n - at.column;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
      if (8 * j < left) f(4 * j + 2 * h, row + 8 * j, 8 * j + 1 < left);
  }
}

// sum += matrix, or sum = matrix
template <int N, bool ADD>
__device__ __forceinline__ void read_sums(const WgmmaArguments& g, Corner at, const float* matrix, int64_t row_stride,
                                          bool paired, float (&sum)[N / 2]) {
  if (!ADD) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) sum[i] = 0.0f;
  }
  each_pair<N>(g, at, matrix, row_stride, [&](int i, const float* p, bool pair) {
    float2 x = make_float2(0.0f, 0.0f);
    if (paired && pair) {
      x = *reinterpret_cast<const float2*>(p);
    } else {
      x.x = p[0];
      if (pair) x.y = p[1];
    }
    sum[i] = ADD ? x.x + sum[i] : x.x;
    sum[i + 1] = ADD ? x.y + sum[i + 1] : x.y;
  });
}

template <int N>
__device__ __forceinline__ void write_sums(const WgmmaArguments& g, Corner at, float* matrix, int64_t row_stride, bool paired,
                                           const float (&sum)[N / 2]) {
  each_pair<N>(g, at, matrix, row_stride, [&](int i, float* p, bool pair) {
    if (paired && pair) {
      *reinterpret_cast<float2*>(p) = make_float2(sum[i], sum[i + 1]);
    } else {
      p[0] = sum[i];
      if (pair) p[1] = sum[i + 1];
    }
  });
}

// Without TMA: out's address or stride is no multiple of 16 bytes.
template <int N>
__device__ __forceinline__ void write_rounded(const WgmmaArguments& g, Corner at, bfloat16* matrix, int64_t row_stride,
                                              const float (&sum)[N / 2]) {
  each_pair<N>(g, at, matrix, row_stride, [&](int i, bfloat16* p, bool pair) {
    p[0] = rounded(sum[i]);
    if (pair) p[1] = rounded(sum[i + 1]);
  });
}

// Through shared memory in boxes of 64 x 64, swizzled, which TMA takes from there; box is the next of the ring of BOXES.
template <int N>
__device__ __forceinline__ void write_boxes(const WgmmaArguments& g, const WgmmaItem& w, int consumer, uint32_t boxes, int& box,
                                            const float (&sum)[N / 2]) {
  constexpr int BOXES = WgmmaShared<N>::BOXES;
  const int t = int(threadIdx.x) % GROUP, lane = t % 32;
  const int row = t / 32 * 16 + lane % 16;  // of the 8 x 8 matrices whose row this lane points to
#pragma unroll
  for (int c = 0; c < N / BOX; c++) {
    const uint32_t to = boxes + uint32_t(box) * BOX_BYTES;
    if (t == 0) tma_store_wait_read<BOXES - 1>();
    sync_some(1 + consumer, GROUP);
#pragma unroll
    for (int j = 0; j < BOX / 16; j++) {
      const float* const s = sum + (c * BOX + j * 16) / 8 * 4;
      const uint32_t piece = uint32_t(2 * j + lane / 16) ^ uint32_t(row & 7);
      store_matrices(to + uint32_t(row) * 128 + piece * 16, rounded_pair(s[0], s[1]), rounded_pair(s[2], s[3]),
                     rounded_pair(s[4], s[5]), rounded_pair(s[6], s[7]));
    }
    fence_async_shared();
    sync_some(1 + consumer, GROUP);
    if (t == 0) {
      tma_store(g.out, w.column + c * BOX, w.row + consumer * 64, 0, to);
      tma_store_commit();
    }
    if (++box == BOXES) box = 0;
  }
}

template <int N>
__device__ __forceinline__ void add_bias(const WgmmaArguments& g, Corner at, float (&sum)[N / 2]) {
#pragma unroll
  for (int j = 0; j < N / 8; j++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int column = at.column + 8 * j + i;
      float bias = 0.0f;
      if (column < g.n)
        bias = g.bias_dtype == DType::float32 ? static_cast<const float*>(g.bias)[column]
                                              : to_float(static_cast<const bfloat16*>(g.bias)[column]);
      sum[4 * j + i] += bias;
      sum[4 * j + 2 + i] += bias;
    }
}

// Pending sums: of the lowest level the first are held in registers, the others lie in memory as they do in registers, where
// each thread reads what it wrote.
template <int N>
__device__ __forceinline__ float4* pending_sums(const WgmmaArguments& g, int level) {
  return reinterpret_cast<float4*>(g.stack) + (int64_t(blockIdx.x) * g.levels + level) * (TILE_M * N / 4) +
         (int(threadIdx.x) - GROUP);
}
template <int N, int FIRST>
__device__ __forceinline__ void push_memory(float4* to, const float (&sum)[N / 2]) {
#pragma unroll
  for (int i = FIRST / 4; i < N / 8; i++)
    to[i * CONSUMERS * GROUP] = make_float4(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]);
}
template <int N, int FIRST>
__device__ __forceinline__ void add_memory(const float4* from, float (&sum)[N / 2]) {
#pragma unroll
  for (int i = FIRST / 4; i < N / 8; i++) {
    const float4 lower = from[i * CONSUMERS * GROUP];
    sum[4 * i] = lower.x + sum[4 * i];
    sum[4 * i + 1] = lower.y + sum[4 * i + 1];
    sum[4 * i + 2] = lower.z + sum[4 * i + 2];
    sum[4 * i + 3] = lower.w + sum[4 * i + 3];
  }
}
template <int N, int HELD>
__device__ __forceinline__ void push_pending(const WgmmaArguments& g, int level, const float (&sum)[N / 2],
                                             float (&held)[HELD]) {
  if (level > 0) return push_memory<N, 0>(pending_sums<N>(g, level), sum);
#pragma unroll
  for (int i = 0; i < HELD; i++) held[i] = sum[i];
  push_memory<N, HELD>(pending_sums<N>(g, 0), sum);
}
template <int N, int HELD>
__device__ __forceinline__ void add_pending(const WgmmaArguments& g, int level, float (&sum)[N / 2],
                                            const float (&held)[HELD]) {
  if (level > 0) return add_memory<N, 0>(pending_sums<N>(g, level), sum);
#pragma unroll
  for (int i = 0; i < HELD; i++) sum[i] = held[i] + sum[i];
  add_memory<N, HELD>(pending_sums<N>(g, 0), sum);
}

}  // namespace plait
