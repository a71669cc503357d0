// What the host tells the wgmma kernel, and how the kernel cuts the work: tiles, leaves, places in shared memory.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/epilogue.cuh"
#include "cuda/matmul_sm90.hpp"

namespace plait {

constexpr int TILE_M = 128, TILE_K = 64, STEP_K = 16;  // a block's tile is TILE_M x N, N a parameter of the kernel
constexpr int CONSUMERS = 2, GROUP = 128;              // warpgroups that multiply, 64 rows each; threads of one
constexpr int WGMMA_THREADS = (1 + CONSUMERS) * GROUP;
constexpr int BOX = 64, BOX_BYTES = BOX * BOX * 2;  // TMA's boxes are 64 elements (128 bytes) wide
constexpr int SUPER_ROWS = 8;                       // rows of cluster tiles that are walked together, for what L2 holds

// Shared memory of a block: a ring of stages (k tiles of A and B), boxes of results on their way out, barriers.
template <int N>
struct WgmmaShared {
  static constexpr int A_BYTES = TILE_M * TILE_K * 2, B_BYTES = N * TILE_K * 2, STAGE_BYTES = A_BYTES + B_BYTES;
  static constexpr int STAGES = N >= 192 ? 4 : N == 128 ? 6 : 8;
  static constexpr int BOXES = N == 192 ? 3 : 2;  // of each consumer
  static constexpr int OUT = STAGES * STAGE_BYTES, BARRIERS = OUT + CONSUMERS * BOXES * BOX_BYTES;
  static constexpr int BYTES = BARRIERS + 2 * STAGES * 8;
  static_assert(BYTES <= 227 * 1024, "more than a block can have");
};

// So many of a consumer thread's N / 2 sums of the lowest pending level stay in its registers: more would spill.
constexpr int held_sums(int n) { return n == 256 ? 48 : n == 192 ? 80 : n == 128 ? 56 : n / 2; }

struct LeafStep {
  int end;          // its first k is the end of the one before
  int16_t merges;   // with the top of the stack, once it is done
  int16_t pending;  // 1: what comes of it is merged later in this call; 0: it goes to out
};
constexpr int STEPS_INSIDE = 64;  // as many leaves travel in the arguments; more lie in device memory

struct WgmmaArguments {
  CUtensorMap a, b;       // (k, rows, 1) where k is innermost, else (rows, k in a sample, sample)
  CUtensorMap out, gelu;  // (columns, rows, 1)
  int m, n;
  int cluster;                  // blocks, with tiles one below the other: they share what they load of B
  int tile_rows, tile_columns;  // tiles of clusters
  int items;                    // those tiles, times the leaves if these are apart
  int period;                   // the length of a sample where b's and a's maps have samples, or 0
  int slot, leaves;
  bool accumulate;
  bool apart;     // each leaf's sum goes to `stack`, to be merged by another kernel
  bool by_tma;    // out, and gelu, are bfloat16 and aligned as TMA needs
  bool paired;    // out is float32, and its pairs are aligned
  const void* bias;
  DType bias_dtype, out_dtype;
  void* data;  // out
  int64_t row_stride, slot_stride;
  AfterCall after;
  float* stack;  // pending sums: of each block and level, in the order of registers; if apart, of each leaf (m, stack_stride)
  int levels;
  int64_t stack_stride;
  const LeafStep* steps_outside;  // or none
  LeafStep steps[STEPS_INSIDE];
};

// What a launch takes: operands that TMA cannot read as they lie are copied first, on stream(). items: of work, where they
// are not the tiles of out.
struct WgmmaCall {
  WgmmaArguments arguments;
  bool k_major_a, k_major_b;
  int blocks;
};
WgmmaCall wgmma_call(const MatmulProblem& problem, const WgmmaPlan& plan, int64_t items = 0);

__device__ __forceinline__ LeafStep leaf_step(const WgmmaArguments& g, int leaf) {
  return g.steps_outside ? g.steps_outside[leaf] : g.steps[leaf];
}

// An item of work: a cluster's tile, and the leaves of it.
struct WgmmaItem {
  int row, column;  // the first of this block's tile
  int first_leaf, last_leaf;
};
template <int N>
__device__ __forceinline__ WgmmaItem wgmma_item(const WgmmaArguments& g, int item, unsigned rank) {
  WgmmaItem w = {0, 0, 0, g.leaves};
  if (g.apart) {
    const int tiles = g.tile_rows * g.tile_columns;
    w.first_leaf = item / tiles;
    w.last_leaf = w.first_leaf + 1;
    item %= tiles;
  }
  const int per_super = SUPER_ROWS * g.tile_columns, super = item / per_super, first = super * SUPER_ROWS;
  const int rows = min(SUPER_ROWS, g.tile_rows - first), within = item - super * per_super;
  w.row = ((first + within % rows) * g.cluster + int(rank)) * TILE_M;
  w.column = within / rows * N;
  return w;
}

// What else the kernel does where rows belong to several ranks: nothing, where all are of one (peer/device_product.cuh).
struct Alone {
  static constexpr bool SUMS = false, GATHERS = false;
  static constexpr int HELD = 0;  // pending sums in registers: held_sums(N), or as many as this
  static constexpr int LOADING = 40, MULTIPLYING = 232;  // registers of a thread
  __device__ __forceinline__ bool starts() const { return true; }
  __device__ __forceinline__ int begin() const { return 0; }
  __device__ __forceinline__ int end(int items) const { return items; }
  template <int N>
  __device__ __forceinline__ WgmmaItem item(const WgmmaArguments& g, int item, unsigned rank) const {
    return wgmma_item<N>(g, item, rank);
  }
  __device__ __forceinline__ int rows_end(const WgmmaArguments& g, const WgmmaItem&) const { return g.m; }
};

// A place in the ring of stages, and the parity of the phase that its barriers are in there.
struct Turn {
  int stage = 0;
  unsigned parity = 0;
  template <int STAGES>
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

}  // namespace plait
