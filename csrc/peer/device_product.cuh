// What the kernel of a product does besides multiplying where rows belong to several ranks (docs/gpu-collectives.md).
//
// SumRows: every rank has a part of every row's sum. It writes the tiles of its peers into their memory first, each with a
// flag, and its own last; when a tile of its own is done it waits for the peers' flags, adds all parts in the order of the tree
// and stores the sum. GatherRows: every rank has some rows. It sends them to its peers while it multiplies them, and waits for
// the flags of the others' before it multiplies those. Nobody waits before it has begun, or ended, all that others wait for.
#pragma once
#include "cuda/epilogue.cuh"
#include "peer/device_copy.cuh"
#include "peer/device_flags.cuh"
#include "peer/device_product.hpp"

namespace plait {

// A tile of 128 rows; rows count from the segment's first.
struct ProductTile {
  int segment, row, column, number;  // number: of the tile in its segment
};

__device__ __forceinline__ ProductTile product_tile(const ProductWalk& walk, int size, int item, int cluster, unsigned rank,
                                                    int columns) {
  constexpr int ROWS = 128, SUPER = 8;
  int step = 0;
  while (item >= walk.first[step + 1]) step++;
  const int q = (walk.start + step) % size, within_segment = item - walk.first[step];
  const int down = (walk.first[step + 1] - walk.first[step]) / walk.columns;
  const int per_super = SUPER * walk.columns, super = within_segment / per_super, first = super * SUPER;
  const int rows = min(SUPER, down - first), within = within_segment - super * per_super;
  const int tile = (first + within % rows) * cluster + int(rank), across = within / rows;
  return {q, tile * ROWS, across * columns, tile * walk.columns + across};
}

struct ProductFlags {
  const Peers& p;
  const ProductTask& task;

  // Of this collective: what a flag becomes. The kernel before this one has left it; 0: its ranks have not met.
  __device__ __forceinline__ uint32_t number() const { return p.sticky(p.rank)->entered; }
  __device__ __forceinline__ void tell(int peer, int unit) const { store_release_sys(p.tile_flag(peer, p.rank, unit), number()); }
  // By one thread; acquire_sys() comes after the last.
  __device__ __forceinline__ bool wait(int peer, int unit) const {
    const uint32_t* const flag = p.tile_flag(p.rank, peer, unit);
    const uint32_t wanted = number();
    return wait_for(
        p, peer, [&] { return load_relaxed_sys(flag) == wanted; },
        [&](Failure why, int who) { tell_failure(p, &task.said, &task.said, why, who, wanted - 1, 2); });
  }
};

struct SumRows {
  static constexpr bool SUMS = true, GATHERS = false;
  Peers p;
  ProductTask task;
  ProductWalk walk;
  bool waits;  // else all parts are there

  // The same for all blocks. What no rank waits for is not written, either: the memory may be another's.
  __device__ __forceinline__ bool starts() const { return ProductFlags{p, task}.number() != 0; }

  // Where this rank's part of a segment's sum lies at its owner, or that of `from` at this rank.
  __device__ __forceinline__ float* part(int owner, int from) const {
    return reinterpret_cast<float*>(p.bases[owner] + task.places[owner]) + int64_t(from) * task.rows(owner) * task.n;
  }

  // Threads `thread` of `threads`, which sync() joins, have written rows [row, row + rows) x [column, column + columns) of the
  // segment as `unit`.
  template <class Sync>
  __device__ __forceinline__ void given(int segment, int unit, int row, int rows, int column, int columns, int thread, int threads,
                                        const Sync& sync) const {
    const ProductFlags flags = {p, task};
    sync();
    if (segment != p.rank) {
      if (thread == 0) flags.tell(segment, unit);
      return;
    }
    if (waits) {
      if (thread < p.size && thread != p.rank) {
        flags.wait(thread, unit);  // in vain: something has failed, and what is stored is of no use
        acquire_sys();
      }
      sync();
    }
    add(row, rows, column, columns, thread, threads);
  }

 private:
  __device__ __forceinline__ void add(int row, int rows, int column, int columns, int thread, int threads) const {
    constexpr int N = AFTER_PACK, DEPTH = PRODUCT_DEPTH;
    const int own = task.rows(p.rank), across = columns / N;
    const float* const parts = part(p.rank, 0);
    const int64_t gap = int64_t(own) * task.n;
#pragma unroll 1
    for (int i = thread; i < rows * across; i += threads) {
      const int r = row + i / across, c = column + i % across * N;
      if (r >= own || c >= task.n) continue;  // n is a multiple of N
      const int64_t at = int64_t(r) * task.n + c;
      float top[N], aside[DEPTH][N];
#pragma unroll 1
      for (int k = 0; k < p.size; k++) {
        float x[N];
        load_pack(parts + k * gap + at, x);
        int merges = task.merges[k];
        if (merges == 0) {
#pragma unroll
          for (int d = DEPTH - 1; d > 0; d--) move(aside[d], aside[d - 1]);
          move(aside[0], top);
          move(top, x);
          continue;
        }
#pragma unroll
        for (int j = 0; j < N; j++) top[j] = top[j] + x[j];
        for (; merges > 1; merges--) {
#pragma unroll
          for (int j = 0; j < N; j++) top[j] = aside[0][j] + top[j];
#pragma unroll
          for (int d = 0; d < DEPTH - 1; d++) move(aside[d], aside[d + 1]);
        }
      }
      store(at, top);
    }
  }
  template <int N>
  static __device__ __forceinline__ void move(float (&to)[N], const float (&from)[N]) {
#pragma unroll
    for (int j = 0; j < N; j++) to[j] = from[j];
  }
  template <int N>
  __device__ __forceinline__ void store(int64_t at, const float (&x)[N]) const {
    const int64_t whole = int64_t(task.bounds[p.rank]) * task.n + at;
    for (int q = 0; q < (task.gather ? p.size : 1); q++) {
      char* const to = task.gather ? p.bases[q] + task.outs[q] : task.out;
      const int64_t place = task.gather ? whole : at;
      if (task.half)
        store_pack(reinterpret_cast<bfloat16*>(to) + place, x);
      else
        store_pack(reinterpret_cast<float*>(to) + place, x);
    }
  }
};

struct GatherRows {
  static constexpr bool SUMS = false, GATHERS = true;
  Peers p;
  ProductTask task;
  ProductWalk walk;
  bool sends, waits;  // this launch does

  __device__ __forceinline__ bool starts() const { return ProductFlags{p, task}.number() != 0; }

  __device__ __forceinline__ static int pieces(int rows) { return (rows + PIECE_ROWS - 1) / PIECE_ROWS; }
  // Units of this rank's rows: to the peer first that multiplies them first.
  __device__ __forceinline__ int units() const { return sends ? (p.size - 1) * pieces(task.rows(p.rank)) : 0; }

  // Copies one of them.
  template <class Sync>
  __device__ __forceinline__ void send(int unit, int thread, int threads, const Sync& sync) const {
    const int each = pieces(task.rows(p.rank)), piece = unit % each;
    const int peer = (p.rank + p.size - 1 - unit / each) % p.size;
    const int first = piece * PIECE_ROWS, count = min(PIECE_ROWS, task.rows(p.rank) - first);
    char* const to = p.bases[peer] + task.places[peer] + int64_t(task.bounds[p.rank] + first) * task.k * 2;
    copy_units<uint4, 4>(to, task.x + int64_t(first) * task.k * 2, int64_t(count) * task.k / 8, thread, threads);
    sync();
    if (thread == 0) ProductFlags{p, task}.tell(peer, piece);
  }

  // Until rows [row, row + 128) of another's segment are here; `thread` of `threads` looks at some of them.
  __device__ __forceinline__ void await(int segment, int row, int thread, int threads) const {
    const int end = pieces(min(row + 128, task.rows(segment)));
    const ProductFlags flags = {p, task};
    for (int piece = row / PIECE_ROWS + thread; piece < end; piece += threads) flags.wait(segment, piece);
    acquire_sys();
  }
};

}  // namespace plait
