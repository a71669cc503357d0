// Copies of images whose pixels copies of 16 bytes cannot take.
#pragma once
#include "core/array.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"

namespace plait {

inline bool pixels_aligned(const void* data, int64_t pitch) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && pitch % 8 == 0;
}

// Kernels count the pixels of a sample, and the elements between two of them, in int.
inline void check_small(const char* call, const ConstArray& image, int64_t pitch) {
  PLAIT_CHECK(image.shape[1] * image.shape[2] < (1 << 30) && pitch < (1 << 30), call, "image ", shape_text(image),
              " is too large for a GPU");
}

// `channels` of each pixel and zeros up to `width`.
static __global__ void __launch_bounds__(256) pixels_kernel(const bfloat16* x, int64_t pitch, int64_t pixels, int64_t channels,
                                                            bfloat16* out, int64_t out_pitch, int64_t width) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t t = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; t < pixels * width; t += step) {
    const int64_t pixel = t / width, c = t % width;
    out[pixel * out_pitch + c] = c < channels ? x[pixel * pitch + c] : bfloat16{0};
  }
}
inline void copy_pixels(const bfloat16* x, int64_t pitch, int64_t pixels, int64_t channels, bfloat16* out, int64_t out_pitch,
                        int64_t width) {
  launch(PLAIT_AT("conv2d, pixels aligned"), pixels_kernel, {blocks_for(pixels * width, 1024), 256}, x, pitch, pixels, channels,
         out, out_pitch, width);
}

}  // namespace plait
