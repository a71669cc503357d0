// A consumer's sums, 64 x N in the registers of 128 threads (as ptx_wgmma.cuh says which), between them and memory.
#pragma once
#include "cuda/matmul_sm90.cuh"
#include "cuda/ptx.cuh"
#include "cuda/ptx_sm90.cuh"
#include "cuda/shared.cuh"

namespace plait {

// Where this thread's first sum lies in the matrix; the others are 8 rows below and 8, 16, ... columns to the right.
struct Corner {
  int row, column;
};
__device__ __forceinline__ Corner corner(const WgmmaItem& w, int consumer) {
  const int t = int(threadIdx.x) % GROUP;
  return {w.row + consumer * 64 + t / 32 * 16 + t % 32 / 4, w.column + t % 4 * 2};
}

// f(i, p): sums i and i + 1 are those of the pair of columns that p points to, `pair` or only the first of which is inside
// matrix (m, n).
template <int N, class T, class F>
__device__ __forceinline__ void each_pair(int m, int n, Corner at, T* matrix, int64_t row_stride, F f) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (at.row + 8 * h >= m) break;
    T* const row = matrix + (at.row + 8 * h) * row_stride + at.column;
    const int left = n - at.column;
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
  each_pair<N>(g.m, g.n, at, matrix, row_stride, [&](int i, const float* p, bool pair) {
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
__device__ __forceinline__ void write_sums(int m, int n, Corner at, float* matrix, int64_t row_stride, bool paired,
                                           const float (&sum)[N / 2]) {
  each_pair<N>(m, n, at, matrix, row_stride, [&](int i, float* p, bool pair) {
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
__device__ __forceinline__ void write_rounded(int m, int n, Corner at, bfloat16* matrix, int64_t row_stride,
                                              const float (&sum)[N / 2]) {
  each_pair<N>(m, n, at, matrix, row_stride, [&](int i, bfloat16* p, bool pair) {
    p[0] = rounded(sum[i]);
    if (pair) p[1] = rounded(sum[i + 1]);
  });
}

// The epilogue on what write_sums or write_rounded stored: 16 rows of each warp.
template <int N>
__device__ __forceinline__ void finish_rows(const WgmmaArguments& g, const WgmmaItem& w, int consumer) {
  const int t = int(threadIdx.x) % GROUP;
  __syncwarp();
  finish_part<AFTER_PACK>(g.after, {w.row + consumer * 64 + t / 32 * 16, w.column, 16, N, t % 32, 32});
}

// Has what the epilogue will read of this consumer's rows in L2 by then.
template <int N>
__device__ __forceinline__ void prefetch_other(const WgmmaArguments& g, const WgmmaItem& w, int consumer) {
  if (g.after.kind != After::gelu_backward && g.after.kind != After::residual) return;
  constexpr int LINES = N / BOX;
  const int first = w.row + consumer * 64, item = g.after.other.half ? 2 : 4;
#pragma unroll 1
  for (int i = int(threadIdx.x) % GROUP; i < 64 * LINES; i += GROUP) {
    const int row = first + i / LINES, column = w.column + i % LINES * BOX;
    if (row < g.m && column < g.n)
      prefetch_l2(static_cast<const char*>(g.after.other.data) + (row * g.after.other.stride + column) * item);
  }
}

// A consumer's boxes of 64 x 64 on their way out through shared memory, swizzled, in a ring.
template <int N>
struct Boxes {
  uint32_t first;
  int consumer;
  int& next;

  __device__ __forceinline__ void sync() const { sync_some(1 + consumer, GROUP); }
  // The next box, once TMA has read what was in it.
  __device__ __forceinline__ uint32_t take() {
    const uint32_t box = first + uint32_t(next) * BOX_BYTES;
    if (++next == WgmmaShared<N>::BOXES) next = 0;
    if (threadIdx.x % GROUP == 0) tma_store_wait_read<WgmmaShared<N>::BOXES - 1>();
    sync();
    return box;
  }
  // All threads have written to the box, of columns from `column` on: it may go.
  __device__ __forceinline__ void send(const CUtensorMap& map, const WgmmaItem& w, int column, uint32_t box) {
    fence_async_shared();
    sync();
    if (threadIdx.x % GROUP != 0) return;
    tma_store(map, column, w.row + consumer * 64, 0, box);
    tma_store_commit();
  }
};

// The epilogue on a box that begins at (row, column); the result is written to `to`, which may be the box itself.
__device__ __forceinline__ void finish_box(const WgmmaArguments& g, int row, int column, uint32_t box, uint32_t to) {
  unsigned char* const shared = dynamic_shared<unsigned char>();
  const uint32_t origin = shared_address(shared);
#pragma unroll 1
  for (int i = int(threadIdx.x) % GROUP; i < BOX * BOX / AFTER_PACK; i += GROUP) {
    const int piece = i % (BOX / AFTER_PACK), r = i / (BOX / AFTER_PACK), left = g.n - column - piece * AFTER_PACK;
    const uint32_t place = uint32_t(r) * 128 + (uint32_t(piece) ^ uint32_t(r & 7)) * 16;
    float x[AFTER_PACK], y[AFTER_PACK] = {};
    load_pack(reinterpret_cast<const bfloat16*>(shared + (box - origin + place)), x);
    if (g.after.kind != After::gelu && row + r < g.m && left > 0)
      g.after.other.load<bfloat16>((row + r) * g.after.other.stride + column + piece * AFTER_PACK,
                                   left < AFTER_PACK ? left : AFTER_PACK, y);
    apply_after(g.after.kind, x, y);
    store_pack(reinterpret_cast<bfloat16*>(shared + (to - origin + place)), x);
  }
}

// box is the next of the ring of BOXES.
template <int N>
__device__ __forceinline__ void write_boxes(const WgmmaArguments& g, const WgmmaItem& w, int consumer, uint32_t boxes, int& box,
                                            const float (&sum)[N / 2]) {
  Boxes<N> ring = {boxes, consumer, box};
  const int t = int(threadIdx.x) % GROUP, lane = t % 32;
  const int row = t / 32 * 16 + lane % 16;  // of the 8 x 8 matrices whose row this lane points to
#pragma unroll
  for (int c = 0; c < N / BOX; c++) {
    const int column = w.column + c * BOX;
    const uint32_t to = ring.take();
#pragma unroll
    for (int j = 0; j < BOX / 16; j++) {
      const float* const s = sum + (c * BOX + j * 16) / 8 * 4;
      const uint32_t piece = uint32_t(2 * j + lane / 16) ^ uint32_t(row & 7);
      store_matrices(to + uint32_t(row) * 128 + piece * 16, rounded_pair(s[0], s[1]), rounded_pair(s[2], s[3]),
                     rounded_pair(s[4], s[5]), rounded_pair(s[6], s[7]));
    }
    if (g.after.kind == After::nothing) {
      ring.send(g.out, w, column, to);
      continue;
    }
    const bool both = g.after.kind == After::gelu;
    uint32_t result = to;
    if (both)
      ring.send(g.out, w, column, to), result = ring.take();
    else
      ring.sync();
    finish_box(g, w.row + consumer * 64, column, to, result);
    ring.send(both ? g.gelu : g.out, w, column, result);
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
