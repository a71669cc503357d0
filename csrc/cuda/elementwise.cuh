// out[i] = f(in[i]) over strided arrays of one shape, in packs of 16 bytes where all are aligned.
#pragma once
#include "core/runs.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"

namespace plait {

template <int N>
struct Pointers {
  void* data[N];
};

// F::apply(const float (&in)[INPUTS], float (&out)[N - INPUTS]); arrays 0 ... INPUTS - 1 are read, the others written.
template <class F, class TIn, class TOut, int INPUTS, int N, int WIDTH>
__global__ void __launch_bounds__(256) elementwise_kernel(F f, Pointers<N> arrays, Runs<N> runs) {
  constexpr int OUTPUTS = N - INPUTS;
  const int64_t packs = (runs.length + WIDTH - 1) / WIDTH, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < runs.count * packs; i += step) {
    int64_t offset[N];
    runs.offsets(i / packs, offset);
    const int64_t first = i % packs * WIDTH;
    float in[INPUTS][WIDTH], out[OUTPUTS][WIDTH];
#pragma unroll
    for (int a = 0; a < INPUTS; a++) load_pack(static_cast<const TIn*>(arrays.data[a]) + offset[a] + first, in[a]);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
      float x[INPUTS], y[OUTPUTS];
#pragma unroll
      for (int a = 0; a < INPUTS; a++) x[a] = in[a][k];
      f.apply(x, y);
#pragma unroll
      for (int a = 0; a < OUTPUTS; a++) out[a][k] = y[a];
    }
#pragma unroll
    for (int a = 0; a < OUTPUTS; a++)
      store_pack(static_cast<TOut*>(arrays.data[INPUTS + a]) + offset[INPUTS + a] + first, out[a]);
  }
}

template <class TIn, class TOut, int INPUTS, int N, class F>
void elementwise(const At& at, const ConstArray* const (&arrays)[N], F f = {}) {
  const Runs<N> runs(at.kernel, arrays, sizeof(TIn) == sizeof(TOut));
  constexpr int WIDTH = PACK<TIn> < PACK<TOut> ? PACK<TIn> : PACK<TOut>;
  Pointers<N> pointers;
  bool wide = runs.length % WIDTH == 0;
  for (int a = 0; a < N; a++) {
    pointers.data[a] = const_cast<void*>(arrays[a]->data);
    const int item = a < INPUTS ? int(sizeof(TIn)) : int(sizeof(TOut));
    wide = wide && reinterpret_cast<uintptr_t>(pointers.data[a]) % (WIDTH * item) == 0;
    for (int axis = 0; axis < runs.ndim; axis++) wide = wide && runs.strides[a][axis] % WIDTH == 0;
  }
  const int64_t elements = runs.count * runs.length;
  if (wide)
    launch(at, elementwise_kernel<F, TIn, TOut, INPUTS, N, WIDTH>, {blocks_for(elements / WIDTH, 256), 256}, f, pointers, runs);
  else
    launch(at, elementwise_kernel<F, TIn, TOut, INPUTS, N, 1>, {blocks_for(elements, 256), 256}, f, pointers, runs);
}

}  // namespace plait
