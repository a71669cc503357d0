// A tile of out by four warps on tensor cores, fed by copies that run STAGES - 1 steps ahead.
#pragma once
#include "cuda/epilogue.cuh"
#include "cuda/fragment.cuh"
#include "cuda/matmul_out.cuh"
#include "cuda/matmul_panel.cuh"
#include "cuda/matmul_walk.cuh"
#include "cuda/shared.cuh"

namespace plait {

struct MmaCall {
  const bfloat16 *a, *b;
  int64_t stride_a, stride_b;
  int period;            // at least 1
  MatmulOut final, out;  // out is where groups of leaves go: final, or partial sums
  bool accumulate;
  int64_t slot;
  float2* kept;
  int depth;
  AfterCall after;
  Leaves leaves;
};

template <int SIDE, int BLOCKS_PER_MULTIPROCESSOR>
struct MmaTile {
  static constexpr int ROWS = SIDE, COLUMNS = SIDE, THREADS = 128, STAGES = 4, BLOCKS = BLOCKS_PER_MULTIPROCESSOR;
  static constexpr int DOWN = SIDE / 32, ACROSS = SIDE / 16;  // fragments of a warp: 16 rows, 8 columns
  static constexpr int PAIRS = DOWN * 2 * ACROSS;             // of a thread
  static constexpr int PANEL = SIDE * STEP * 2, SHARED = 2 * PANEL * STAGES;
};
using LargeTile = MmaTile<128, 2>;
using SmallTile = MmaTile<64, 4>;

// Pair (2 i + h, j) of a thread: row 8 h of fragment (i, j).
template <class Tile>
struct MmaPlace {
  int64_t first_row, first_column;

  __device__ MmaPlace(const Turn& turn) {
    const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
    first_row = turn.row + warp / 2 * (Tile::ROWS / 2) + lane / 4;
    first_column = turn.column + warp % 2 * (Tile::COLUMNS / 2) + lane % 4 * 2;
  }
  static constexpr int row(int r) { return r * 8; }
  static constexpr int column(int c) { return c * 8; }
  __device__ __forceinline__ bool inside(const MatmulOut& out) const {  // the warp's part
    const int lane = int(threadIdx.x) % WARP;
    return first_row - lane / 4 + Tile::ROWS / 2 <= out.m && first_column - lane % 4 * 2 + Tile::COLUMNS / 2 <= out.n;
  }
  __device__ __forceinline__ void store_half(const Sums<Tile::DOWN * 2, Tile::ACROSS>& sum, const MatmulOut& out) const {
    const int q = int(threadIdx.x) % 4;
    bfloat16* const to = static_cast<bfloat16*>(out.data) + first_row * out.row_stride + first_column - 2 * q + 8 * q;
#pragma unroll
    for (int r = 0; r < Tile::DOWN * 2; r++)
#pragma unroll
      for (int j = 0; j < Tile::ACROSS; j += 4) {
        uint32_t w[4];
#pragma unroll
        for (int f = 0; f < 4; f++) w[f] = rounded_pair(sum[r][j + f][0], sum[r][j + f][1]);
        *reinterpret_cast<uint4*>(to + r * 8 * out.row_stride + j * 8) = gather_row(w);
      }
  }
};

// One turn of a block. Copies bring panels of a and b, DEEP (k contiguous) or not: start(stage, k, valid, leaf).
template <class Tile, bool DEEP_A, bool DEEP_B, class CopyA, class CopyB>
__device__ __forceinline__ void mma_turn(const Leaves& leaves, const Turn& turn, int period, SharedAddress shared,
                                         CopyA& copy_a, CopyB& copy_b, const MatmulOut& final, const MatmulOut& out,
                                         bool accumulate, int64_t slot, float2* kept) {
  constexpr int STAGES = Tile::STAGES;
  const int warp = int(threadIdx.x) / WARP;
  const PanelRead<Tile::ROWS, DEEP_A, true> read_a(shared, warp / 2 * (Tile::ROWS / 2));
  const PanelRead<Tile::COLUMNS, DEEP_B, false> read_b(shared + Tile::PANEL, warp % 2 * (Tile::COLUMNS / 2));
  const MmaPlace<Tile> place(turn);
  Walk ahead(leaves, turn, period);
  SharedAddress writing = 0, reading = 0;
  const auto after = [](SharedAddress stage) {
    return stage == SharedAddress((STAGES - 1) * 2 * Tile::PANEL) ? SharedAddress(0) : stage + SharedAddress(2 * Tile::PANEL);
  };
  const auto start = [&] {
    int k, valid;
    if (ahead.next(STEP, k, valid)) {
      copy_a.start(writing, k, valid, leaves.leaf[ahead.leaf]);
      copy_b.start(writing, k, valid, leaves.leaf[ahead.leaf]);
    }
    commit_copies();
    writing = after(writing);
  };
  __syncthreads();  // all have read what the turn before left
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) start();

  int top = 0;
  for (int l = turn.first_leaf; l < turn.last_leaf; l++) {
    const Leaf& leaf = leaves.leaf[l];
    Sums<Tile::DOWN * 2, Tile::ACROSS> sum = {};
    if (l == 0 && accumulate) load_sums<false, Tile::DOWN * 2, Tile::ACROSS>(sum, final, slot, place);
    for (int steps = steps_of(leaf, period, STEP); steps > 0; steps--) {
      wait_copies<STAGES - 2>();
      __syncthreads();  // the stage is there for all, and all have read the one before
      start();
#pragma unroll
      for (int half = 0; half < STEP / 16; half++) {
        uint32_t a[Tile::DOWN][4], b[Tile::ACROSS / 2][4];
#pragma unroll
        for (int i = 0; i < Tile::DOWN; i++) read_a.load(a[i], reading, i, half);
#pragma unroll
        for (int j = 0; j < Tile::ACROSS / 2; j++) read_b.load(b[j], reading, j, half);
#pragma unroll
        for (int i = 0; i < Tile::DOWN; i++)
#pragma unroll
          for (int j = 0; j < Tile::ACROSS; j++) {
            auto &upper = sum[2 * i][j], &lower = sum[2 * i + 1][j];
            mma(upper[0], upper[1], lower[0], lower[1], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
          }
      }
      reading = after(reading);
    }
    end_leaf<Tile::THREADS, Tile::DOWN * 2, Tile::ACROSS>(sum, leaf, final, out, kept, top, place);
  }
}

// The epilogue of what a warp stored.
template <class Tile>
__device__ __forceinline__ void finish_warp(const AfterCall& after, const Turn& turn) {
  constexpr int ROWS = Tile::ROWS / 2, COLUMNS = Tile::COLUMNS / 2;
  const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
  __syncwarp();
  finish_part<AFTER_PACK>(after, {turn.row + warp / 2 * ROWS, turn.column + warp % 2 * COLUMNS, ROWS, COLUMNS, lane, WARP});
}

// DEEP_A: a is stored (m, k); DEEP_B: b is stored (n, k).
template <class Tile, bool DEEP_A, bool DEEP_B>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS) mma_kernel(const __grid_constant__ MmaCall call) {
  const SharedAddress shared = shared_address(dynamic_shared<unsigned char>());
  float2* const kept = call.kept + int64_t(blockIdx.x) * call.depth * Tile::PAIRS * Tile::THREADS + threadIdx.x;
  const int64_t down = (call.final.m + Tile::ROWS - 1) / Tile::ROWS,
                across = (call.final.n + Tile::COLUMNS - 1) / Tile::COLUMNS;
  for (int64_t t = blockIdx.x; t < down * across * call.leaves.groups; t += gridDim.x) {
    const Turn turn(call.leaves, t, down, across, Tile::ROWS, Tile::COLUMNS);
    PanelCopy<Tile::ROWS, DEEP_A, Tile::THREADS> copy_a(call.a, call.stride_a, turn.row, call.final.m, shared);
    PanelCopy<Tile::COLUMNS, DEEP_B, Tile::THREADS> copy_b(call.b, call.stride_b, turn.column, call.final.n,
                                                           shared + Tile::PANEL);
    mma_turn<Tile, DEEP_A, DEEP_B>(call.leaves, turn, call.period, shared, copy_a, copy_b, call.final, call.out,
                                   call.accumulate, call.slot, kept);
    if (call.after.kind != After::nothing) finish_warp<Tile>(call.after, turn);
  }
}

}  // namespace plait
