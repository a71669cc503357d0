// The end of a leaf: a block's sums merge with what it kept before and with slots of out, then go to out or are kept.
#pragma once
#include "core/dtype.hpp"
#include "cuda/matmul_engine.hpp"
#include "cuda/matmul_plan.hpp"
#include "cuda/ptx.cuh"

namespace plait {

struct MatmulOut {
  void* data;
  int64_t row_stride, slot_stride;
  int64_t m, n;
  const void* bias;
  bool half, half_bias;  // bfloat16; else float32
  bool pairs, packs;     // whether 2 floats from an even column, or 8 elements from a multiple of 8, can move as one
};

inline MatmulOut matmul_out(const MatmulProblem& p) {
  MatmulOut out = {p.out,
                   p.row_stride_out,
                   p.slots_stride,
                   p.m,
                   p.n,
                   p.bias,
                   p.out_dtype == DType::bfloat16,
                   p.bias_dtype == DType::bfloat16,
                   false,
                   false};
  const int64_t item = size_of(p.out_dtype), strides = out.row_stride | out.slot_stride;
  const auto fits = [&](int64_t n) { return reinterpret_cast<uintptr_t>(p.out) % (n * item) == 0 && strides % n == 0; };
  out.pairs = fits(2), out.packs = fits(8);
  return out;
}

// What a thread has of a tile: ROWS x COLUMNS pairs of adjacent columns. Place::row(r) and column(c), known to the compiler,
// say how far from first_row and first_column a pair lies; Place::store_half(sums, out) stores all of them as bfloat16
// where out.packs and inside(out).
template <int ROWS, int COLUMNS>
using Sums = float[ROWS][COLUMNS][2];

// How many rows or columns there are from `first` on, as far as a tile can tell.
__device__ __forceinline__ int left_of(int64_t size, int64_t first) {
  return size - first > 4096 ? 4096 : size - first < 0 ? 0 : int(size - first);
}

// Calls f(pair, where it lies, whether its first and its second element are inside) for each pair.
template <int ROWS, int COLUMNS, class T, class Place, class F>
__device__ __forceinline__ void each_pair(Sums<ROWS, COLUMNS>& sum, const MatmulOut& out, int64_t slot, const Place& place,
                                          F f) {
  const int64_t first_row = opaque(place.first_row), first_column = opaque(place.first_column);
  const int rows = left_of(out.m, first_row), columns = left_of(out.n, first_column);
  T* const at = static_cast<T*>(out.data) + slot * out.slot_stride + first_row * out.row_stride + first_column;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    T* const row = at + Place::row(r) * out.row_stride;
    if (Place::row(r) >= rows) continue;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++)
      f(sum[r][c], row + Place::column(c), Place::column(c) < columns, Place::column(c) + 1 < columns);
  }
}

// sum = what lies in a slot of float32 [+ sum]
template <bool ADD, int ROWS, int COLUMNS, class Place>
__device__ __forceinline__ void load_sums(Sums<ROWS, COLUMNS>& sum, const MatmulOut& from, int64_t slot, const Place& place) {
  const auto take = [](float (&x)[2], float first, float second) {
    x[0] = ADD ? first + x[0] : first;
    x[1] = ADD ? second + x[1] : second;
  };
  if (from.pairs) {
    each_pair<ROWS, COLUMNS, const float>(sum, from, slot, place, [&](float (&x)[2], const float* at, bool first, bool second) {
      if (second) {
        const float2 pair = *reinterpret_cast<const float2*>(at);
        take(x, pair.x, pair.y);
      } else if (first) {
        take(x, *at, 0.0f);
      }
    });
  } else {
    each_pair<ROWS, COLUMNS, const float>(sum, from, slot, place, [&](float (&x)[2], const float* at, bool first, bool second) {
      if (first) take(x, at[0], second ? at[1] : 0.0f);
    });
  }
}

__device__ __forceinline__ float bias_at(const MatmulOut& out, int64_t column) {
  return out.half_bias ? to_float(static_cast<const bfloat16*>(out.bias)[column]) : static_cast<const float*>(out.bias)[column];
}

template <int ROWS, int COLUMNS, class Place>
__device__ __forceinline__ void store_sums(Sums<ROWS, COLUMNS>& sum, const MatmulOut& out, int64_t slot, const Place& place) {
  if (out.bias) {
    const int64_t first_column = opaque(place.first_column);
    const int columns = left_of(out.n, first_column);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const int64_t column = first_column + Place::column(c);
      const float first = Place::column(c) < columns ? bias_at(out, column) : 0.0f,
                  second = Place::column(c) + 1 < columns ? bias_at(out, column + 1) : 0.0f;
#pragma unroll
      for (int r = 0; r < ROWS; r++) sum[r][c][0] += first, sum[r][c][1] += second;
    }
  }
  if (out.half) {
    if (out.packs && place.inside(out)) {
      place.store_half(sum, out);
      return;
    }
    each_pair<ROWS, COLUMNS, bfloat16>(sum, out, slot, place, [&](float (&x)[2], bfloat16* at, bool first, bool second) {
      if (first) at[0] = rounded(x[0]);
      if (second) at[1] = rounded(x[1]);
    });
  } else if (out.pairs) {
    each_pair<ROWS, COLUMNS, float>(sum, out, slot, place, [&](float (&x)[2], float* at, bool first, bool second) {
      if (second)
        *reinterpret_cast<float2*>(at) = make_float2(x[0], x[1]);
      else if (first)
        at[0] = x[0];
    });
  } else {
    each_pair<ROWS, COLUMNS, float>(sum, out, slot, place, [&](float (&x)[2], float* at, bool first, bool second) {
      if (first) at[0] = x[0];
      if (second) at[1] = x[1];
    });
  }
}

// kept: this thread's place in the block's stack, whose pairs lie THREADS apart; top: how many sums are on it.
template <int THREADS, int ROWS, int COLUMNS, class Place>
__device__ __forceinline__ void end_leaf(Sums<ROWS, COLUMNS>& sum, const Leaf& leaf, const MatmulOut& final,
                                         const MatmulOut& out, float2* kept, int& top, const Place& place) {
  constexpr int SIZE = ROWS * COLUMNS * THREADS;
#pragma unroll 1
  for (int m = 0; m < leaf.near; m++) {
    top--;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        const float2 lower = kept[top * SIZE + (r * COLUMNS + c) * THREADS];
        sum[r][c][0] = lower.x + sum[r][c][0], sum[r][c][1] = lower.y + sum[r][c][1];
      }
  }
#pragma unroll 1
  for (int m = leaf.far - 1; m >= 0; m--) load_sums<true, ROWS, COLUMNS>(sum, final, leaf.slot + m, place);
  if (leaf.kept) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int c = 0; c < COLUMNS; c++)
        kept[top * SIZE + (r * COLUMNS + c) * THREADS] = make_float2(sum[r][c][0], sum[r][c][1]);
    top++;
  } else {
    store_sums<ROWS, COLUMNS>(sum, out, leaf.slot, place);
  }
}

}  // namespace plait
