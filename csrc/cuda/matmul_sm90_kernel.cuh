// The wgmma kernel: one thread of the first warpgroup keeps TMA loading k tiles into a ring of stages, the other two
// warpgroups multiply them, 64 rows each. Blocks stay and take items in turn; the ring runs on from one item to the next, so
// the next item's first tiles are loaded while this one's sums are written.
#pragma once
#include "cuda/matmul_sm90.cuh"
#include "cuda/matmul_sm90_sums.cuh"
#include "cuda/ptx_wgmma.cuh"
#include "cuda/shared.cuh"
#include "cuda/wgmma_operand.cuh"

// Code for 9.0 alone: empty in what is compiled for other chips.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PLAIT_SM90 1
#else
#define PLAIT_SM90 0
#endif

namespace plait {

template <int N>
struct WgmmaBlock {
  using Shared = WgmmaShared<N>;
  uint32_t shared;
  unsigned rank;  // in the cluster
  __device__ __forceinline__ uint32_t a(int stage) const { return shared + uint32_t(stage) * Shared::STAGE_BYTES; }
  __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + Shared::A_BYTES; }
  __device__ __forceinline__ uint32_t loaded(int stage) const { return shared + Shared::BARRIERS + uint32_t(stage) * 16; }
  __device__ __forceinline__ uint32_t free(int stage) const { return loaded(stage) + 8; }
};

// Loads one k tile: A's 128 rows for this block, where they lie; of B its part of what the cluster shares, for all of them.
struct RowsOfA {
  const CUtensorMap* map;
  int row;
};
template <int N, bool K_MAJOR_A, bool K_MAJOR_B>
__device__ __forceinline__ void load_k_tile(const WgmmaArguments& g, const WgmmaBlock<N>& block, int stage, const RowsOfA& of_a,
                                            int column, int k, int sample) {
  const uint32_t a = block.a(stage), b = block.b(stage), loaded = block.loaded(stage);
  barrier_expect(loaded, WgmmaShared<N>::STAGE_BYTES);
  if (K_MAJOR_A) {
    tma_load(a, *of_a.map, k, of_a.row, 0, loaded);
  } else {
#pragma unroll
    for (int i = 0; i < TILE_M / BOX; i++) tma_load(a + i * BOX_BYTES, *of_a.map, of_a.row + i * BOX, k, sample, loaded);
  }
  const auto load = [&](uint32_t to, int x, int y, int z) {
    if (g.cluster == 1)
      tma_load(to, g.b, x, y, z, loaded);
    else
      tma_load_to(uint16_t((1u << g.cluster) - 1), to, g.b, x, y, z, loaded);
  };
  if (K_MAJOR_B) {  // each block a part of the rows
    const int part = int(block.rank) * (N / g.cluster);
    load(b + uint32_t(part) * 128, k, column + part, 0);
  } else {  // each a part of the k
    const int part = int(block.rank) * (TILE_K / g.cluster);
#pragma unroll
    for (int i = 0; i < N / BOX; i++)
      load(b + uint32_t(i) * BOX_BYTES + uint32_t(part) * 128, column + i * BOX, k + part, sample);
  }
}

template <int N, bool K_MAJOR_A, bool K_MAJOR_B, class Spread>
__device__ __forceinline__ void produce(const WgmmaArguments& g, const WgmmaBlock<N>& block, const Spread& spread) {
  Turn turn;
  const int last = spread.end(g.items);
  for (int item = spread.begin() + int(blockIdx.x) / g.cluster; item < last; item += int(gridDim.x) / g.cluster) {
    const auto w = spread.template item<N>(g, item, block.rank);
    RowsOfA of_a = {&g.a, w.row};
    if constexpr (Spread::GATHERS) of_a = spread.rows_of_a(g, w);
    int k = w.first_leaf ? leaf_step(g, w.first_leaf - 1).end : 0;
    for (int leaf = w.first_leaf; leaf < w.last_leaf; leaf++) {
      const int end = leaf_step(g, leaf).end;
      while (k < end) {
        const int sample = g.period ? k / g.period : 0, first = sample * g.period;
        const int part_end = g.period ? min(end, k + g.period) : end;
        for (; k < part_end; k += TILE_K) {
          barrier_wait(block.free(turn.stage), turn.parity ^ 1);
          load_k_tile<N, K_MAJOR_A, K_MAJOR_B>(g, block, turn.stage, of_a, w.column, k - first, sample);
          turn.next<WgmmaShared<N>::STAGES>();
        }
        k = part_end;
      }
    }
  }
}

// Tells the producers of all blocks whose copies land here that this warp has done with the stage.
template <int N>
__device__ __forceinline__ void release(const WgmmaArguments& g, const WgmmaBlock<N>& block, int stage) {
  const unsigned lane = threadIdx.x % 32;
  if (lane < unsigned(g.cluster)) barrier_arrive(block.free(stage), lane);
}

// Queues sum += the k tile that this turn's stage holds, once it is there.
template <int N, bool K_MAJOR_A, bool K_MAJOR_B>
__device__ __forceinline__ void queue_k_tile(const WgmmaBlock<N>& block, int consumer, const Turn& turn, int add,
                                             float (&sum)[N / 2]) {
  barrier_wait(block.loaded(turn.stage), turn.parity);
  const uint64_t a = wgmma_operand(block.a(turn.stage) + uint32_t(consumer) * BOX_BYTES, K_MAJOR_A, BOX_BYTES);
  const uint64_t b = wgmma_operand(block.b(turn.stage), K_MAJOR_B, BOX_BYTES);
  wgmma_fence();
#pragma unroll
  for (unsigned s = 0; s < TILE_K / STEP_K; s++)
    Wgmma<N, K_MAJOR_A, K_MAJOR_B>::multiply(sum, a + s * wgmma_step(K_MAJOR_A), b + s * wgmma_step(K_MAJOR_B), s ? 1 : add);
  wgmma_commit();
}

// sum += the k in [k, end), in steps of 16 that start afresh at multiples of period from k. While a k tile is multiplied the
// next is waited for and queued; a stage is free when the one after it is queued and the tensor cores are past it.
template <int N, bool K_MAJOR_A, bool K_MAJOR_B>
__device__ __forceinline__ void multiply(const WgmmaArguments& g, const WgmmaBlock<N>& block, int consumer, int k, int end,
                                         bool chain, Turn& turn, float (&sum)[N / 2]) {
  constexpr int STEPS = TILE_K / STEP_K, STAGES = WgmmaShared<N>::STAGES;
  int add = chain;
  while (k < end) {
    const int part_end = g.period ? min(end, k + g.period) : end;
    const int steps = (part_end - k + STEP_K - 1) / STEP_K;
    k = part_end;
    if (steps >= STEPS) {
      queue_k_tile<N, K_MAJOR_A, K_MAJOR_B>(block, consumer, turn, add, sum);
      int before = turn.stage;
      turn.next<STAGES>();
      for (int tile = 1; tile < steps / STEPS; tile++) {
        queue_k_tile<N, K_MAJOR_A, K_MAJOR_B>(block, consumer, turn, 1, sum);
        wgmma_wait<1>();
        release(g, block, before);
        before = turn.stage;
        turn.next<STAGES>();
      }
      wgmma_wait<0>();
      wgmma_done(sum);
      release(g, block, before);
      add = 1;
    }
    if (steps % STEPS) {
      barrier_wait(block.loaded(turn.stage), turn.parity);
      uint64_t a = wgmma_operand(block.a(turn.stage) + uint32_t(consumer) * BOX_BYTES, K_MAJOR_A, BOX_BYTES);
      uint64_t b = wgmma_operand(block.b(turn.stage), K_MAJOR_B, BOX_BYTES);
#pragma unroll 1
      for (int s = 0; s < steps % STEPS; s++) {
        wgmma_fence();
        Wgmma<N, K_MAJOR_A, K_MAJOR_B>::multiply(sum, a, b, add);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_done(sum);
        add = 1;
        a += wgmma_step(K_MAJOR_A), b += wgmma_step(K_MAJOR_B);
      }
      release(g, block, turn.stage);
      turn.next<STAGES>();
    }
  }
}

template <int N, bool K_MAJOR_A, bool K_MAJOR_B, class Spread>
__device__ __forceinline__ void consume(const WgmmaArguments& g, const WgmmaBlock<N>& block, int consumer,
                                        const Spread& spread) {
  const uint32_t boxes = block.shared + WgmmaShared<N>::OUT + uint32_t(consumer * WgmmaShared<N>::BOXES) * BOX_BYTES;
  int box = 0;
  Turn turn;
  const int last = spread.end(g.items);
  for (int item = spread.begin() + int(blockIdx.x) / g.cluster; item < last; item += int(gridDim.x) / g.cluster) {
    const auto w = spread.template item<N>(g, item, block.rank);
    const Corner at = corner(w, consumer);
    float* const out = static_cast<float*>(g.data);
    prefetch_other<N>(g, w, consumer);
    int k = w.first_leaf ? leaf_step(g, w.first_leaf - 1).end : 0;
    int top = g.slot, floor = g.slot;  // of the stack; below floor it lies in out
    float sum[N / 2], held[Spread::HELD ? Spread::HELD : held_sums(N)];
    bool chain = g.accumulate && w.first_leaf == 0;
    if (chain) read_sums<N, false>(g, at, out + g.slot * g.slot_stride, g.row_stride, g.paired, sum);
    for (int leaf = w.first_leaf; leaf < w.last_leaf; leaf++) {
      const LeafStep step = leaf_step(g, leaf);
      if (!chain && k == step.end) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) sum[i] = 0.0f;
      }
      multiply<N, K_MAJOR_A, K_MAJOR_B>(g, block, consumer, k, step.end, chain, turn, sum);
      chain = false;
      k = step.end;
      if (g.apart) {
        write_sums<N>(g.m, g.n, at, g.stack + leaf * g.m * g.stack_stride, g.stack_stride, true, sum);
        continue;
      }
      for (int merge = 0; merge < step.merges; merge++) {
        top--;
        if (top >= floor)
          add_pending<N>(g, top - floor, sum, held);
        else
          floor = top, read_sums<N, true>(g, at, out + top * g.slot_stride, g.row_stride, g.paired, sum);
      }
      if (step.pending) {
        push_pending<N>(g, top - floor, sum, held);
      } else if constexpr (!Spread::SUMS) {
        if (g.bias) add_bias<N>(g, at, sum);
        const int m = spread.rows_end(g, w);
        if (g.out_dtype == DType::float32)
          write_sums<N>(m, g.n, at, out + top * g.slot_stride, g.row_stride, g.paired, sum);
        else if (g.by_tma)
          write_boxes<N>(g, w, consumer, boxes, box, sum);
        else
          write_rounded<N>(m, g.n, at, static_cast<bfloat16*>(g.data), g.row_stride, sum);
        if (g.after.kind != After::nothing && !g.by_tma) finish_rows<N>(g, w, consumer);
      }
      top++;
    }
    if constexpr (Spread::SUMS)  // what the item is, found out again: no registers meanwhile
      spread.template give<N>(g, spread.template item<N>(g, int(opaque(item)), block.rank), consumer, sum);
  }
  if (threadIdx.x % GROUP == 0) tma_store_wait();
}

template <int N, bool K_MAJOR_A, bool K_MAJOR_B, class Spread = Alone>
__global__ void __launch_bounds__(WGMMA_THREADS, 1)
    wgmma_kernel(const __grid_constant__ WgmmaArguments g, const __grid_constant__ Spread spread) {
#if PLAIT_SM90
  static_assert(Spread::LOADING + CONSUMERS * Spread::MULTIPLYING <= 3 * 168, "the block has 168 for each: more are waited for for ever");
  if (!spread.starts()) return;
  const WgmmaBlock<N> block = {shared_address(dynamic_shared<unsigned char>()), cluster_rank()};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < WgmmaShared<N>::STAGES; stage++) {
      barrier_init(block.loaded(stage), 1);
      barrier_init(block.free(stage), unsigned(g.cluster * CONSUMERS * GROUP / 32));
    }
    fence_barrier_init();
    if (leaf_step(g, g.leaves - 1).end > 0) tma_prefetch(g.a), tma_prefetch(g.b);
    if (g.by_tma) tma_prefetch(g.out);
  }
  cluster_sync();
  const int group = int(threadIdx.x) / GROUP;
  if (group == 0) {
    fewer_registers<Spread::LOADING>();
    if (threadIdx.x == 0) produce<N, K_MAJOR_A, K_MAJOR_B>(g, block, spread);
    if constexpr (Spread::GATHERS) {
      if (threadIdx.x >= 32) spread.feed(g);  // the producer's other warps
    }
  } else {
    more_registers<Spread::MULTIPLYING>();
    consume<N, K_MAJOR_A, K_MAJOR_B>(g, block, group - 1, spread);
  }
  cluster_sync();  // no block goes while another may still write to it, or tell it of a stage
#endif
}

}  // namespace plait
