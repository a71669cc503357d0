// Eight bits of the keys at a time, from the lowest. Three kernels a pass: count the digits of each tile, turn the counts into
// places, move the pairs.
#include <utility>

#include "cuda/sort.cuh"
#include "cuda/warp.cuh"

namespace plait {
namespace {

constexpr int DIGITS = 256, TILE_WARPS = 8, TILE_ROUNDS = 4;
constexpr int TILE = TILE_WARPS * TILE_ROUNDS * WARP;  // pairs of a block, in order: by warp, round, lane
static_assert(TILE_WARPS * WARP == DIGITS, "a thread looks after a digit");

__device__ __forceinline__ int64_t tile_index(int round) {
  const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
  return int64_t(blockIdx.x) * TILE + (warp * TILE_ROUNDS + round) * WARP + lane;
}

// counts(digit, tile)
__global__ void __launch_bounds__(TILE_WARPS* WARP)
    count_digits_kernel(const int32_t* keys, int64_t n, int shift, int64_t tiles, int* counts) {
  __shared__ int found[DIGITS];
  found[threadIdx.x] = 0;
  __syncthreads();
  for (int round = 0; round < TILE_ROUNDS; round++) {
    const int64_t i = tile_index(round);
    if (i < n) atomicAdd(&found[uint32_t(keys[i]) >> shift & (DIGITS - 1)], 1);
  }
  __syncthreads();
  counts[threadIdx.x * tiles + blockIdx.x] = found[threadIdx.x];
}

// counts(digit, tile) become the number of pairs before: those of lower digits, and of earlier tiles. One block.
__global__ void __launch_bounds__(DIGITS) place_digits_kernel(int64_t tiles, int* counts) {
  __shared__ int before[DIGITS];
  int* mine = counts + threadIdx.x * tiles;
  int total = 0;
#pragma unroll 8
  for (int64_t t = 0; t < tiles; t++) total += mine[t];
  before[threadIdx.x] = total;
  __syncthreads();
  for (int far = 1; far < DIGITS; far *= 2) {
    const int lower = int(threadIdx.x) >= far ? before[threadIdx.x - far] : 0;
    __syncthreads();
    before[threadIdx.x] += lower;
    __syncthreads();
  }
  int place = before[threadIdx.x] - total;
  for (int64_t t = 0; t < tiles; t++) {
    const int count = mine[t];
    mine[t] = place;
    place += count;
  }
}

__global__ void __launch_bounds__(TILE_WARPS* WARP)
    move_pairs_kernel(Pairs from, int64_t n, int shift, int64_t tiles, const int* places, Pairs to) {
  __shared__ int next[TILE_WARPS][DIGITS];  // where a warp's next pair of a digit goes
  const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
  for (int w = 0; w < TILE_WARPS; w++) next[w][threadIdx.x] = 0;
  __syncthreads();
  for (int round = 0; round < TILE_ROUNDS; round++) {
    const int64_t i = tile_index(round);
    if (i < n) atomicAdd(&next[warp][uint32_t(from.keys[i]) >> shift & (DIGITS - 1)], 1);
  }
  __syncthreads();
  int place = places[threadIdx.x * tiles + blockIdx.x];
  for (int w = 0; w < TILE_WARPS; w++) {
    const int count = next[w][threadIdx.x];
    next[w][threadIdx.x] = place;
    place += count;
  }
  __syncthreads();
  for (int round = 0; round < TILE_ROUNDS; round++) {
    const int64_t i = tile_index(round);
    const int32_t key = i < n ? from.keys[i] : 0;
    const uint32_t digit = uint32_t(key) >> shift & (DIGITS - 1);
    unsigned same = __ballot_sync(ALL_LANES, i < n);  // lanes with this digit
#pragma unroll
    for (int bit = 1; bit < DIGITS; bit *= 2) {
      const unsigned set = __ballot_sync(ALL_LANES, (digit & bit) != 0);
      same &= digit & bit ? set : ~set;
    }
    const int rank = __popc(same & ((1u << lane) - 1)), first = next[warp][digit];
    __syncwarp();
    if (i < n) {
      to.keys[first + rank] = key;
      to.positions[first + rank] = from.positions[i];
      if (rank == 0) next[warp][digit] = first + __popc(same);
    }
    __syncwarp();
  }
}

}  // namespace

int64_t sort_scratch(int64_t n) {
  return (n + TILE - 1) / TILE * DIGITS;
}

Pairs sort_pairs(const At& at, Pairs pairs, Pairs other, int64_t n, int64_t most, int* counts) {
  const int64_t tiles = (n + TILE - 1) / TILE;
  if (!tiles) return pairs;
  for (int shift = 0; shift < 32 && (shift == 0 || most >> shift); shift += 8) {
    launch(at, count_digits_kernel, {unsigned(tiles), TILE_WARPS * WARP}, pairs.keys, n, shift, tiles, counts);
    launch(at, place_digits_kernel, {1, DIGITS}, tiles, counts);
    launch(at, move_pairs_kernel, {unsigned(tiles), TILE_WARPS * WARP}, pairs, n, shift, tiles, counts, other);
    std::swap(pairs, other);
  }
  return pairs;
}

}  // namespace plait
