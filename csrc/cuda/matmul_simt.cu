// Products with a float32 operand: each leaf of an element is one chain of fused multiply-adds in ascending k, the bits of
// cpu/gemm.cpp. Tiles of 128 x 128 x 8 by 256 threads, which keep the next step's elements in registers meanwhile.
#include "core/scalar.hpp"
#include "cuda/matmul_launch.cuh"
#include "cuda/matmul_simt.hpp"
#include "cuda/matmul_walk.cuh"
#include "cuda/shared.cuh"

namespace plait {
namespace {

constexpr int SIDE = 128, DEPTH = 8, THREADS = 256, ROW = SIDE + 4;  // of shared memory: (DEPTH, ROW) floats

// Element (i, j) of op(x) lies at i * wide + j * deep: one of them is 1.
struct Matrix {
  const void* data;
  int64_t wide, deep, width;
  bool half;
};
struct SimtCall {
  Matrix a, b;
  MatmulOut final, out;
  bool accumulate;
  int64_t slot;
  float2* kept;
  int depth;
  AfterCall after;
  Leaves leaves;
};

struct SimtPlace {
  int64_t first_row, first_column;
  static constexpr int row(int r) { return r / 4 * (SIDE / 2) + r % 4; }
  static constexpr int column(int c) { return c / 2 * (SIDE / 2) + c % 2 * 2; }
  __device__ bool inside(const MatmulOut&) const { return false; }
  __device__ void store_half(const Sums<8, 4>&, const MatmulOut&) const {}
};

// A thread's elements of a step, on their way to shared memory.
struct Fetch {
  static constexpr int COUNT = SIDE * DEPTH / THREADS;
  float x[COUNT];

  // Neighbours take neighbours in memory: element i is row + i * rows_apart, k + i * k_apart.
  struct Place {
    int k, row, k_apart, rows_apart;
    __device__ explicit Place(const Matrix& m) {
      const int t = int(threadIdx.x);
      const bool along = m.deep == 1;
      k = along ? t % DEPTH : t / SIDE, k_apart = along ? 0 : THREADS / SIDE;
      row = along ? t / DEPTH : t % SIDE, rows_apart = along ? THREADS / DEPTH : 0;
    }
  };
  __device__ __forceinline__ void load(const Matrix& m, int64_t first, int64_t from, int valid) {
    const Place p(m);
    const int64_t apart = p.rows_apart * m.wide + p.k_apart * m.deep, start = opaque(first);
    const int rows = left_of(m.width, start);
    int64_t at = (start + p.row) * m.wide + (from + p.k) * m.deep;
#pragma unroll
    for (int i = 0; i < COUNT; i++, at += apart) {
      x[i] = 0.0f;
      if (p.k + i * p.k_apart < valid && p.row + i * p.rows_apart < rows)
        x[i] = m.half ? to_float(static_cast<const bfloat16*>(m.data)[at]) : static_cast<const float*>(m.data)[at];
    }
  }
  __device__ __forceinline__ void store(const Matrix& m, float* panel) const {
    const Place p(m);
    float* to = panel + p.k * ROW + p.row;
#pragma unroll
    for (int i = 0; i < COUNT; i++, to += p.k_apart * ROW + p.rows_apart) *to = x[i];
  }
};

__global__ void __launch_bounds__(THREADS, 1) simt_kernel(const __grid_constant__ SimtCall call) {
  float* const shared = dynamic_shared<float>();  // two stages of a and b
  const int down_thread = int(threadIdx.x) / 16 * 4, across_thread = int(threadIdx.x) % 16 * 4;
  float2* const kept = call.kept + int64_t(blockIdx.x) * call.depth * 32 * THREADS + threadIdx.x;
  const int64_t down = (call.final.m + SIDE - 1) / SIDE, across = (call.final.n + SIDE - 1) / SIDE;

  for (int64_t t = blockIdx.x; t < down * across * call.leaves.groups; t += gridDim.x) {
    const Turn turn(call.leaves, t, down, across, SIDE, SIDE);
    const SimtPlace place{turn.row + down_thread, turn.column + across_thread};
    Walk ahead(call.leaves, turn, int(LONGEST_SUM));
    Fetch a, b;
    int stage = 0, valid = 0, coming = 0;
    const auto fetch = [&] {
      int k;
      if (!ahead.next(DEPTH, k, coming)) return;
      a.load(call.a, turn.row, k, coming);
      b.load(call.b, turn.column, k, coming);
    };
    fetch();
    int top = 0;
    for (int l = turn.first_leaf; l < turn.last_leaf; l++) {
      const Leaf& leaf = call.leaves.leaf[l];
      Sums<8, 4> sum = {};
      if (l == 0 && call.accumulate) load_sums<false, 8, 4>(sum, call.final, call.slot, place);
      for (int steps = steps_of(leaf, int(LONGEST_SUM), DEPTH); steps > 0; steps--) {
        float* const panel = shared + stage * 2 * DEPTH * ROW;
        a.store(call.a, panel);
        b.store(call.b, panel + DEPTH * ROW);
        valid = coming;
        __syncthreads();  // with two stages, all have also read the one that is written next
        fetch();
        const auto multiply = [&](int k) {
          float x[8], y[8];
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const float4 u = *reinterpret_cast<const float4*>(panel + k * ROW + down_thread + i * (SIDE / 2));
            const float4 v = *reinterpret_cast<const float4*>(panel + (DEPTH + k) * ROW + across_thread + i * (SIDE / 2));
            x[i * 4] = u.x, x[i * 4 + 1] = u.y, x[i * 4 + 2] = u.z, x[i * 4 + 3] = u.w;
            y[i * 4] = v.x, y[i * 4 + 1] = v.y, y[i * 4 + 2] = v.z, y[i * 4 + 3] = v.w;
          }
#pragma unroll
          for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) sum[i][j / 2][j % 2] = fma(x[i], y[j], sum[i][j / 2][j % 2]);
        };
        if (valid == DEPTH) {
#pragma unroll
          for (int k = 0; k < DEPTH; k++) multiply(k);
        } else {
#pragma unroll 1
          for (int k = 0; k < valid; k++) multiply(k);  // zeros beyond would add terms that are not there
        }
        stage ^= 1;
      }
      end_leaf<THREADS, 8, 4>(sum, leaf, call.final, call.out, kept, top, place);
    }
    __syncthreads();
    if (call.after.kind != After::nothing)
      finish_part<AFTER_PACK>(call.after, {turn.row, turn.column, SIDE, SIDE, int(threadIdx.x), THREADS});
  }
}

}  // namespace

void matmul_simt(const MatmulProblem& p, const void* a, DType type_a, const void* b, DType type_b) {
  const int64_t tiles = ((p.m + SIDE - 1) / SIDE) * ((p.n + SIDE - 1) / SIDE);
  const MatmulShare share = share_out(p, tiles, 32 * THREADS * 8, 1);
  const int64_t kept_bytes = rounded_up(share.kept_bytes);
  char* const memory = static_cast<char*>(scratch_bytes(kept_bytes + share.partial_bytes));
  float* const partial = reinterpret_cast<float*>(memory + kept_bytes);
  SimtCall call = {};
  call.a = {a, p.transpose_a ? 1 : p.row_stride_a, p.transpose_a ? p.row_stride_a : 1, p.m, type_a == DType::bfloat16};
  call.b = {b, p.transpose_b ? p.row_stride_b : 1, p.transpose_b ? 1 : p.row_stride_b, p.n, type_b == DType::bfloat16};
  call.final = matmul_out(p);
  call.out = out_of_groups(share, call.final, partial);
  call.accumulate = p.accumulate, call.slot = p.slot;
  call.kept = reinterpret_cast<float2*>(memory), call.depth = share.plan.depth;
  call.after = after_of_groups(share, p);
  call.leaves = share.plan.leaves;
  launch(PLAIT_AT("matmul"), simt_kernel, {share.blocks, THREADS, size_t(4 * DEPTH * ROW) * sizeof(float)}, call);
  finish(PLAIT_AT("matmul, merge of leaves"), share, call.final, partial, after_call(p));
}

}  // namespace plait
