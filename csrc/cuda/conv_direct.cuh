// Convolutions of float32, a thread for each element: one chain of fused multiply-adds, the bits of cpu/conv.cpp.
#pragma once
#include "core/conv_shape.hpp"
#include "core/scalar.hpp"
#include "cuda/matmul_plan.hpp"
#include "cuda/pack.cuh"

namespace plait {

// Images: pixels `pitch` elements apart. backward: of grad_x, from the gradient; else of out, from x.
template <class T, class Y>
struct DirectCall {
  const T* image;
  const T* kernel;  // (taps and channels of all leaves, columns)
  Y* out;
  int64_t pitch, places, columns;
  int height, width, to_height, to_width, kernel_height, kernel_width, stride, padding;
  int leaves;
  Leaf leaf[MOST_LEAVES];  // begin, end: of channels
};
template <class T, class Y, bool BACKWARD>
__global__ void __launch_bounds__(256) direct_kernel(const __grid_constant__ DirectCall<T, Y> call) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x, area = int64_t(call.to_height) * call.to_width;
  const int taps = call.kernel_height * call.kernel_width;
  for (int64_t t = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; t < call.places * call.columns; t += step) {
    const int64_t place = t / call.columns, column = t % call.columns;
    const int oy = int(place % area) / call.to_width, ox = int(place % area) % call.to_width;
    const T* const sample = call.image + place / area * call.height * call.width * call.pitch;
    float kept[8];  // sums that wait for a merge: a tree of 128 leaves has 7
    int top = 0;
    for (int l = 0; l < call.leaves; l++) {
      const Leaf& leaf = call.leaf[l];
      float sum = 0.0f;
      for (int tap = 0; tap < taps; tap++) {
        const int kh = tap / call.kernel_width, kw = tap % call.kernel_width;
        int y = BACKWARD ? oy + call.padding - kh : oy * call.stride - call.padding + kh;
        int x = BACKWARD ? ox + call.padding - kw : ox * call.stride - call.padding + kw;
        if (BACKWARD && (y % call.stride || x % call.stride)) continue;
        if (y < 0 || x < 0) continue;
        if (BACKWARD) y /= call.stride, x /= call.stride;
        if (y >= call.height || x >= call.width) continue;
        const T* const pixel = sample + (int64_t(y) * call.width + x) * call.pitch + leaf.begin;
        const int64_t width = leaf.end - leaf.begin;
        const T* const kernel = call.kernel + (leaf.begin * taps + tap * width) * call.columns + column;
        for (int64_t c = 0; c < width; c++) sum = fma(to_float(pixel[c]), to_float(kernel[c * call.columns]), sum);
      }
      for (int m = 0; m < leaf.near; m++) sum = kept[--top] + sum;
      if (leaf.kept)
        kept[top++] = sum;
      else
        call.out[t] = from_float<Y>(sum);
    }
  }
}

struct DirectWeightCall {
  const float *grad, *image;
  float* out;  // a stack; an element's tap and channels follow from its place
  int64_t grad_pitch, pitch, area, slot_stride, slot;
  int height, width, to_width, kernel_height, kernel_width, stride, padding;
  int64_t first, last;  // channels
  bool input_first, accumulate;
  int leaves;
  Leaf leaf[MOST_LEAVES];  // begin, end: of samples
};
static __global__ void __launch_bounds__(128) direct_weight_kernel(const __grid_constant__ DirectWeightCall call) {
  const int64_t t = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int taps = call.kernel_height * call.kernel_width;
  if (t >= call.first * taps * call.last) return;
  const int64_t row = t / call.last / taps, column = t % call.last;
  const int tap = int(t / call.last % taps), kh = tap / call.kernel_width, kw = tap % call.kernel_width;
  const int64_t of_grad = call.input_first ? column : row, of_image = call.input_first ? row : column;
  float kept[32];
  int top = 0;
  for (int l = 0; l < call.leaves; l++) {
    const Leaf& leaf = call.leaf[l];
    float sum = l == 0 && call.accumulate ? call.out[call.slot * call.slot_stride + t] : 0.0f;
    for (int64_t b = leaf.begin; b < leaf.end; b++)
      for (int64_t place = 0; place < call.area; place++) {
        const int64_t y = place / call.to_width * call.stride - call.padding + kh,
                      x = place % call.to_width * call.stride - call.padding + kw;
        if (y < 0 || x < 0 || y >= call.height || x >= call.width) continue;
        sum = fma(call.grad[(b * call.area + place) * call.grad_pitch + of_grad],
                  call.image[((b * call.height + y) * call.width + x) * call.pitch + of_image], sum);
      }
    for (int m = 0; m < leaf.near; m++) sum = kept[--top] + sum;
    for (int m = leaf.far - 1; m >= 0; m--) sum = call.out[(leaf.slot + m) * call.slot_stride + t] + sum;
    if (leaf.kept)
      kept[top++] = sum;
    else
      call.out[leaf.slot * call.slot_stride + t] = sum;
  }
}

}  // namespace plait
