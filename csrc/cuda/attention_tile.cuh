// Rows of heads in shared memory, as the products of attention read them; and the softmax's power of two.
//
// A row has WIDE bfloat16 (64 or 128: the head size, filled up with zeros); chunk c of 16 bytes of row r lies at c ^ (r % 8).
#pragma once
#include "core/scalar.hpp"
#include "cuda/attention_shape.hpp"
#include "cuda/fragment.cuh"
#include "cuda/ptx_mma.cuh"
#include "cuda/shared.cuh"

namespace plait {

constexpr int ATTENTION_THREADS = 128;

// 2^x within 2e-7 of its size, 0 below 2^-126.5; for x up to 127. 2^0 is 1. NaN stays NaN.
__device__ __forceinline__ float power_of_two(float x) {
  x = max_or_nan(x, -127.0f);
  const float shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds to an integer and leaves it in the low bits
  const float r = x - (shifted - 12582912.0f);
  float p = 0.001326472614891827f;
  p = fma(p, r, 0.009671512991189957f);
  p = fma(p, r, 0.05550733581185341f);
  p = fma(p, r, 0.24022242426872253f);
  p = fma(p, r, 0.6931470036506653f);
  p = fma(p, r, 1.0f);
  return p * __uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23));  // times 0 where x is -127
}
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

// Starts the copy of COUNT rows from `first` on, zeros beyond `rows` and beyond the head's size.
template <int WIDE, int COUNT>
__device__ __forceinline__ void copy_rows(SharedAddress to, const bfloat16* head, int64_t row_stride, int64_t first,
                                          int64_t rows, int size) {
  constexpr int CHUNKS = WIDE / 8, APART = ATTENTION_THREADS / CHUNKS;
  static_assert(APART % 8 == 0 && COUNT % APART == 0, "a thread's chunks have one place in their rows");
  const int t = int(threadIdx.x), chunk = t % CHUNKS, row = t / CHUNKS, left = size - chunk * 8;
  const int bytes = left >= 8 ? 16 : left > 0 ? left * 2 : 0;
  const int there = int(rows - first < COUNT ? rows - first : COUNT) - row;
  const bfloat16* const from = head + (first + row) * row_stride + chunk * 8;
  to += SharedAddress(row * WIDE * 2 + ((chunk ^ (row % 8)) * 16));
#pragma unroll
  for (int i = 0; i < COUNT / APART; i++)
    copy_async(to + SharedAddress(i * APART * WIDE * 2), from + i * APART * row_stride, i * APART < there ? bytes : 0);
}

// Where a lane reads fragments of such rows. Sums run along the head: rows of the left operand, or of the right one (which
// are columns of the product) ...
template <int WIDE, bool LEFT>
struct AlongHead {
  SharedAddress at;
  __device__ AlongHead(SharedAddress rows, int first) {
    const int lane = int(threadIdx.x) % WARP, low = lane / 8 % 2, high = lane / 16, r = lane % 8;
    const int row = first + (LEFT ? low : high) * 8 + r, chunk = LEFT ? high : low;
    at = rows + SharedAddress(row * WIDE * 2 + ((chunk ^ r) * 16));
  }
  // Of rows first + 16 i on, elements 16 k of the head on: a fragment of a left operand, or two of a right one.
  __device__ __forceinline__ void load(uint32_t (&x)[4], int i, int k, SharedAddress stage = 0) const {
    load_matrices(x, ((at + stage) ^ SharedAddress(k * 32)) + SharedAddress(i * 16 * WIDE * 2));
  }
};
// ... or along rows of the right operand, whose columns are the head's elements.
template <int WIDE>
struct AlongRows {
  SharedAddress at;
  __device__ AlongRows(SharedAddress rows) {
    const int lane = int(threadIdx.x) % WARP, low = lane / 8 % 2, high = lane / 16, r = lane % 8;
    at = rows + SharedAddress((low * 8 + r) * WIDE * 2 + ((high ^ r) * 16));
  }
  // Two fragments: rows 16 k on, elements 16 j on.
  __device__ __forceinline__ void load(uint32_t (&x)[4], int k, int j, SharedAddress stage = 0) const {
    load_matrices_transposed(x, ((at + stage) ^ SharedAddress(j * 32)) + SharedAddress(k * 16 * WIDE * 2));
  }
};

// s (16 x 16 N) = left fragments (sums along the head) times rows of the right operand.
template <int WIDE, int N, class Left>
__device__ __forceinline__ void scores(float (&s)[2 * N][4], const Left& left, const AlongHead<WIDE, false>& right,
                                       SharedAddress stage) {
#pragma unroll
  for (int j = 0; j < 2 * N; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) s[j][e] = 0.0f;
#pragma unroll
  for (int k = 0; k < WIDE / 16; k++) {
    uint32_t a[4];
    left(a, k);
#pragma unroll
    for (int j = 0; j < N; j++) {
      uint32_t b[4];
      right.load(b, j, k, stage);
      mma(s[2 * j][0], s[2 * j][1], s[2 * j][2], s[2 * j][3], a, b[0], b[1]);
      mma(s[2 * j + 1][0], s[2 * j + 1][1], s[2 * j + 1][2], s[2 * j + 1][3], a, b[2], b[3]);
    }
  }
}

// sum (16 x WIDE) += p (16 x 16 N, rounded) times rows.
template <int WIDE, int N>
__device__ __forceinline__ void add_product(float (&sum)[WIDE / 8][4], const float (&p)[2 * N][4], const AlongRows<WIDE>& right,
                                            SharedAddress stage) {
#pragma unroll
  for (int k = 0; k < N; k++) {
    uint32_t a[4];
    as_left(a, p[2 * k], p[2 * k + 1]);
#pragma unroll
    for (int j = 0; j < WIDE / 16; j++) {
      uint32_t b[4];
      right.load(b, k, j, stage);
      mma(sum[2 * j][0], sum[2 * j][1], sum[2 * j][2], sum[2 * j][3], a, b[0], b[1]);
      mma(sum[2 * j + 1][0], sum[2 * j + 1][1], sum[2 * j + 1][2], sum[2 * j + 1][3], a, b[2], b[3]);
    }
  }
}

// The warp's 16 rows to memory. -0 becomes +0: it would tell of skipped masked keys. aligned: rows lie on 16 bytes.
template <int WIDE>
__device__ __forceinline__ void store_rows(const float (&sum)[WIDE / 8][4], bfloat16* head, int64_t row_stride, int64_t first,
                                           int64_t rows, int size, bool aligned) {
  const int lane = int(threadIdx.x) % WARP, q = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int64_t row = first + lane / 4 + h * 8;
    bfloat16* const to = head + row * row_stride;
#pragma unroll
    for (int j = 0; j < WIDE / 8; j += 4) {
      uint32_t w[4];
#pragma unroll
      for (int f = 0; f < 4; f++) w[f] = rounded_pair(sum[j + f][2 * h] + 0.0f, sum[j + f][2 * h + 1] + 0.0f);
      if (aligned) {
        const uint4 eight = gather_row(w);
        if (row < rows && (j + q) * 8 < size) *reinterpret_cast<uint4*>(to + (j + q) * 8) = eight;
      } else if (row < rows) {
#pragma unroll
        for (int f = 0; f < 4; f++) {
          const int column = (j + f) * 8 + 2 * q;
          if (column < size) to[column] = bfloat16{uint16_t(w[f])};
          if (column + 1 < size) to[column + 1] = bfloat16{uint16_t(w[f] >> 16)};
        }
      }
    }
  }
}

}  // namespace plait
