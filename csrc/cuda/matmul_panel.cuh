// Panels of bfloat16 operands: WIDTH rows (or columns) of 32 k in shared memory, filled by cp.async, read by ldmatrix.
//
// DEEP: k is contiguous in memory, and in the panel, whose rows of 64 bytes are four chunks of 16; chunk c of row r lies at
// c ^ (r / 2 % 4). Otherwise rows of the panel are k, and its chunk c lies at c ^ (k % 8). So eight rows of one chunk, which
// ldmatrix reads at once, lie in eight different groups of banks, and so do the chunks that a quarter of a warp writes.
#pragma once
#include "core/dtype.hpp"
#include "cuda/matmul_plan.hpp"
#include "cuda/ptx_mma.cuh"

namespace plait {

constexpr int STEP = 32;  // k of a panel: two of mma's

// Bytes of a chunk that are there, of `left` elements.
__device__ __forceinline__ int chunk_bytes(int64_t left) {
  return left >= 8 ? 16 : left > 0 ? int(left) * 2 : 0;
}

// What one thread copies of the panels of a tile.
template <int WIDTH, bool DEEP, int THREADS>
struct PanelCopy {
  static constexpr int COUNT = WIDTH * STEP / 8 / THREADS, ROWS = DEEP ? THREADS / 4 : THREADS / (WIDTH / 8);
  const bfloat16* from;
  int64_t stride;
  int left;          // DEEP: rows of the operand from this thread's first; else bytes of its chunk
  SharedAddress to;  // in the first stage

  __device__ PanelCopy(const bfloat16* data, int64_t row_stride, int64_t first, int64_t width, SharedAddress panel)
      : stride(row_stride) {
    const int t = int(threadIdx.x);
    if (DEEP) {
      const int row = t / 4, chunk = t % 4;
      from = data + (first + row) * stride + chunk * 8;
      left = int(width - first < WIDTH ? width - first : WIDTH) - row;
      to = panel + SharedAddress(row * 64 + ((chunk ^ (row / 2 % 4)) * 16));
    } else {
      const int k = t / (WIDTH / 8), chunk = t % (WIDTH / 8);
      from = data + k * stride + first + chunk * 8;
      left = chunk_bytes(width - first - chunk * 8);
      to = panel + SharedAddress(k * WIDTH * 2 + ((chunk ^ (k % 8)) * 16));
    }
  }
  // k ... k + valid, zeros up to 32.
  __device__ __forceinline__ void start(SharedAddress stage, int k, int valid, const Leaf&) const {
    static_assert(ROWS % 8 == 0, "a thread's chunks have one place in their rows");
    const int t = int(threadIdx.x);
    if (DEEP) {
      const int chunk = valid - t % 4 * 8, bytes = chunk >= 8 ? 16 : chunk > 0 ? chunk * 2 : 0;
#pragma unroll
      for (int i = 0; i < COUNT; i++)
        copy_async(to + stage + SharedAddress(i * ROWS * 64), from + k + i * ROWS * stride, i * ROWS < left ? bytes : 0);
    } else {
      const int row = t / (WIDTH / 8);
      const bfloat16* const first = from + k * stride;
#pragma unroll
      for (int i = 0; i < COUNT; i++)
        copy_async(to + stage + SharedAddress(i * ROWS * WIDTH * 2), first + i * ROWS * stride,
                   row + i * ROWS < valid ? left : 0);
    }
  }
};

// Where a lane reads fragments of 16 rows x 16 k from `first` of the panel on. LEFT: for mma's a; else two of its b.
template <int WIDTH, bool DEEP, bool LEFT>
struct PanelRead {
  SharedAddress at;

  __device__ PanelRead(SharedAddress panel, int first) {
    const int lane = int(threadIdx.x) % 32, matrix = lane / 8, r = lane % 8;
    const int low = matrix % 2, high = matrix / 2;
    const int wide = LEFT ? low : high, deep = LEFT ? high : low;  // which half of the 16 rows, of the 16 k
    if (DEEP) {
      const int row = first + wide * 8 + r;
      at = panel + SharedAddress(row * 64 + ((deep ^ (row / 2 % 4)) * 16));
    } else {
      const int k = deep * 8 + r;
      at = panel + SharedAddress(k * WIDTH * 2 + (((first / 8 + wide) ^ (k % 8)) * 16));
    }
  }
  // Fragment i, of rows first + 16 i on, half `half` of the panel's k. `first` is a multiple of 16 COUNT, a power of two.
  __device__ __forceinline__ void load(uint32_t (&x)[4], SharedAddress stage, int i, int half) const {
    if (DEEP)
      load_matrices(x, ((at + stage) ^ SharedAddress(half * 32)) + SharedAddress(i * 16 * 64));
    else
      load_matrices_transposed(x, ((at + stage) ^ SharedAddress(i * 32)) + SharedAddress(half * 16 * WIDTH * 2));
  }
};

}  // namespace plait
