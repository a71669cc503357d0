// Sums over samples and positions, one for each channel: x (B, S, C) -> (C).
//
// The order: strand j of 32 adds positions j, j + 32, ... of a sample in one chain from +0; strand j adds strand j + 16,
// then j + 8, j + 4, j + 2, j + 1; samples are added one by one to what out holds (or +0). It depends on nothing but
// the length of a sample, so a sum over samples goes on in the next microbatch.
#pragma once
#include <type_traits>

#include "core/array.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/warp.cuh"

namespace plait {

constexpr int STRANDS = 32;

template <class T, int INPUTS>
struct Positions {  // (B, S, C)
  const T* data[INPUTS];
  int64_t sample_stride[INPUTS], position_stride[INPUTS];
  int64_t samples, positions, channels;
};
template <int SUMS>
struct Outputs {
  float* data[SUMS];
};

// What all positions of a channel share: Term::column(c), where a term has that.
struct NoColumn {};
template <class Term>
__device__ __forceinline__ auto column_of(const Term& term, int64_t c, int) -> decltype(term.column(c)) {
  return term.column(c);
}
template <class Term>
__device__ __forceinline__ NoColumn column_of(const Term&, int64_t, long) {
  return {};
}
template <class Term, class Row, class Column, int INPUTS, int SUMS>
__device__ __forceinline__ void add_term(const Term& term, const float (&value)[INPUTS], const Row& row, const Column& column,
                                         float (&sum)[SUMS]) {
  if constexpr (std::is_same_v<Column, NoColumn>)
    term.add(value, row, sum);
  else
    term.add(value, row, column, sum);
}

// A block takes 32 packs of channels of one sample: threadIdx.x a pack, threadIdx.y a strand.
// Term::row(b, s) gives what all channels of a position share, Term::add(values, row, [column,] sum) adds one element.
template <class Term, class T, int INPUTS, int SUMS, int WIDTH>
__global__ void __launch_bounds__(1024) strands_kernel(Positions<T, INPUTS> x, Term term, float* partial) {
  __shared__ float strand[STRANDS / 2][SUMS * WIDTH][WARP + 1];
  const int64_t channel = (int64_t(blockIdx.x) * WARP + threadIdx.x) * WIDTH, b = blockIdx.y;
  float sum[SUMS * WIDTH];
#pragma unroll
  for (int k = 0; k < SUMS * WIDTH; k++) sum[k] = 0.0f;
  if (channel < x.channels) {
    decltype(column_of(term, 0, 0)) column[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; i++) column[i] = column_of(term, channel + i, 0);
#pragma unroll 4
    for (int64_t s = threadIdx.y; s < x.positions; s += STRANDS) {
      float v[INPUTS][WIDTH];
#pragma unroll
      for (int a = 0; a < INPUTS; a++)
        load_pack(x.data[a] + b * x.sample_stride[a] + s * x.position_stride[a] + channel, v[a]);
      const auto row = term.row(b, s);
#pragma unroll
      for (int i = 0; i < WIDTH; i++) {
        float value[INPUTS], to[SUMS];
#pragma unroll
        for (int a = 0; a < INPUTS; a++) value[a] = v[a][i];
#pragma unroll
        for (int k = 0; k < SUMS; k++) to[k] = sum[k * WIDTH + i];
        add_term(term, value, row, column[i], to);
#pragma unroll
        for (int k = 0; k < SUMS; k++) sum[k * WIDTH + i] = to[k];
      }
    }
  }
  for (unsigned half = STRANDS / 2; half > 0; half /= 2) {
    if (threadIdx.y >= half && threadIdx.y < 2 * half) {
#pragma unroll
      for (int k = 0; k < SUMS * WIDTH; k++) strand[threadIdx.y - half][k][threadIdx.x] = sum[k];
    }
    __syncthreads();
    if (threadIdx.y < half) {
#pragma unroll
      for (int k = 0; k < SUMS * WIDTH; k++) sum[k] += strand[threadIdx.y][k][threadIdx.x];
    }
    __syncthreads();
  }
  if (threadIdx.y == 0 && channel < x.channels) {
#pragma unroll
    for (int k = 0; k < SUMS; k++)
#pragma unroll
      for (int i = 0; i < WIDTH; i++) partial[(b * SUMS + k) * x.channels + channel + i] = sum[k * WIDTH + i];
  }
}

// out(k, c) [+]= partial(0, k, c) + partial(1, k, c) ..., then divided
template <int SUMS>
__global__ void __launch_bounds__(128)
    samples_kernel(const float* partial, int64_t samples, int64_t channels, bool accumulate, float divisor, Outputs<SUMS> out) {
  const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, k = blockIdx.y;
  if (c >= channels) return;
  float* to = out.data[0];
#pragma unroll
  for (int i = 1; i < SUMS; i++)
    if (k == i) to = out.data[i];
  float sum = accumulate ? to[c] : 0.0f;
#pragma unroll 8
  for (int64_t b = 0; b < samples; b++) sum += partial[(b * SUMS + k) * channels + c];
  to[c] = sum / divisor;
}

// All of inputs are (B, S, C) of type T with unit stride along C. memory: B * SUMS * C floats, of a caller that has more in
// scratch. divisor: of the whole sums.
template <class T, int INPUTS, int SUMS, class Term>
void sum_columns(const At& at, const ConstArray* const (&inputs)[INPUTS], const Term& term, bool accumulate,
                 float* const (&out)[SUMS], float divisor = 1.0f, float* memory = nullptr) {
  constexpr int WIDTH = 2;
  const ConstArray& first = *inputs[0];
  Positions<T, INPUTS> x = {};
  x.samples = first.shape[0], x.positions = first.shape[1], x.channels = first.shape[2];
  bool wide = x.channels % WIDTH == 0;
  for (int a = 0; a < INPUTS; a++) {
    x.data[a] = static_cast<const T*>(inputs[a]->data);
    x.sample_stride[a] = inputs[a]->strides[0], x.position_stride[a] = inputs[a]->strides[1];
    wide = wide && pack_aligned<T>(x.data[a], x.sample_stride[a], WIDTH) && x.position_stride[a] % WIDTH == 0;
  }
  Outputs<SUMS> outputs;
  for (int k = 0; k < SUMS; k++) outputs.data[k] = out[k];
  float* partial = memory ? memory : scratch<float>(x.samples * SUMS * x.channels);
  const int64_t packs = wide ? x.channels / WIDTH : x.channels;
  PLAIT_CHECK(x.samples < 65536, at.kernel, "at most 65535 samples at once, got ", x.samples);
  const Grid grid{{unsigned((packs + WARP - 1) / WARP), unsigned(x.samples)}, {WARP, STRANDS}};
  if (x.positions > 0 && x.samples > 0)
    launch(at, wide ? strands_kernel<Term, T, INPUTS, SUMS, WIDTH> : strands_kernel<Term, T, INPUTS, SUMS, 1>, grid, x, term,
           partial);
  else
    x.samples = 0;
  launch(at, samples_kernel<SUMS>, {{unsigned((x.channels + 127) / 128), SUMS}, 128}, partial, x.samples, x.channels, accumulate,
         divisor, outputs);
}

}  // namespace plait
