// The sizes of one convolution, checked once for its three kernels.
#pragma once
#include <vector>

#include "core/array.hpp"

namespace plait {

struct ConvShape {
  int64_t batch, height, width, inputs;        // x (batch, height, width, inputs)
  int64_t out_height, out_width, outputs;      // out (batch, out_height, out_width, outputs)
  int64_t kernel_height, kernel_width, stride, padding;
  // element (o, kh, kw, i) of the weight lies at o * of_output + (kh * kernel_width + kw) * of_tap + i * of_input
  int64_t of_output, of_tap, of_input;
};

// x, out: the images (or their gradients); weight: the weight (or its gradient). ValueError unless sizes fit.
ConvShape conv_shape(const char* call, const ConstArray& x, const ConstArray& weight, bool input_first,
                     int64_t stride, int64_t padding, const ConstArray& out);

// Elements from pixel to pixel of an image (B, H, W, C): C if contiguous, more if it is a slice of channels.
int64_t pixel_pitch(const char* call, const ConstArray& image);

}  // namespace plait
