// Convolutions of bfloat16 as products of matrices whose panels are gathered from images (conv_gather.cuh).
#pragma once
#include "cuda/conv_gather.cuh"
#include "cuda/matmul_mma.cuh"

namespace plait {

// out (places of the other image, columns) = pixels gathered times kernel (taps and channels of all leaves, columns).
struct ConvCall {
  ConvImage image;
  const bfloat16* kernel;
  int64_t kernel_stride;
  MatmulOut final, out;
  float2* kept;
  int depth;
  Leaves leaves;
};
template <class Tile, bool BACKWARD>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS) conv_kernel(const __grid_constant__ ConvCall call) {
  const SharedAddress shared = shared_address(dynamic_shared<unsigned char>());
  float2* const kept = call.kept + int64_t(blockIdx.x) * call.depth * Tile::PAIRS * Tile::THREADS + threadIdx.x;
  const int64_t down = (call.final.m + Tile::ROWS - 1) / Tile::ROWS,
                across = (call.final.n + Tile::COLUMNS - 1) / Tile::COLUMNS;
  for (int64_t t = blockIdx.x; t < down * across * call.leaves.groups; t += gridDim.x) {
    const Turn turn(call.leaves, t, down, across, Tile::ROWS, Tile::COLUMNS);
    PixelCopy<Tile::ROWS, BACKWARD, Tile::THREADS> copy_a(call.image, turn.row, call.final.m, shared);
    PanelCopy<Tile::COLUMNS, false, Tile::THREADS> copy_b(call.kernel, call.kernel_stride, turn.column, call.final.n,
                                                          shared + Tile::PANEL);
    mma_turn<Tile, true, false>(call.leaves, turn, int(LONGEST_SUM), shared, copy_a, copy_b, call.final, call.out, false, 0,
                                kept);
  }
}

// For every tap: out (first, last channels) = sum over places of one image's channels times the other's.
struct ConvWeightCall {
  ConvImage image;       // x
  const bfloat16* grad;  // of the places
  int grad_pitch;
  int taps;
  MatmulOut final, out;  // of tap 0; those of the next lie n further
  bool accumulate;
  int64_t slot;
  float2* kept;
  int depth;
  Leaves leaves;
};
template <class Tile, bool INPUT_FIRST>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS) conv_weight_kernel(const __grid_constant__ ConvWeightCall call) {
  const SharedAddress shared = shared_address(dynamic_shared<unsigned char>());
  float2* const kept = call.kept + int64_t(blockIdx.x) * call.depth * Tile::PAIRS * Tile::THREADS + threadIdx.x;
  const int64_t down = (call.final.m + Tile::ROWS - 1) / Tile::ROWS,
                across = (call.final.n + Tile::COLUMNS - 1) / Tile::COLUMNS;
  for (int64_t t = blockIdx.x; t < down * across * call.taps * call.leaves.groups; t += gridDim.x) {
    const int tap = int(t % call.taps);
    const Turn turn(call.leaves, t / call.taps, down, across, Tile::ROWS, Tile::COLUMNS);
    SampleCopy<Tile::ROWS, INPUT_FIRST, Tile::THREADS> copy_a(call.image, INPUT_FIRST ? call.image.data : call.grad,
                                                              INPUT_FIRST ? call.image.pitch : call.grad_pitch, tap, turn.row,
                                                              call.final.m, shared);
    SampleCopy<Tile::COLUMNS, !INPUT_FIRST, Tile::THREADS> copy_b(call.image, INPUT_FIRST ? call.grad : call.image.data,
                                                                  INPUT_FIRST ? call.grad_pitch : call.image.pitch, tap,
                                                                  turn.column, call.final.n, shared + Tile::PANEL);
    MatmulOut final = call.final, out = call.out;
    final.data = static_cast<float*>(final.data) + tap * final.n;
    out.data = static_cast<float*>(out.data) + tap * out.n;
    const int area = call.image.to_height * call.image.to_width;
    mma_turn<Tile, false, false>(call.leaves, turn, area, shared, copy_a, copy_b, final, out, call.accumulate, call.slot, kept);
  }
}

}  // namespace plait
