// Shape checks of convolutions.
#include "core/conv_shape.hpp"

namespace plait {

ConvShape conv_shape(const char* call, const ConstArray& x, const ConstArray& weight, bool input_first,
                     int64_t stride, int64_t padding, const ConstArray& out) {
  PLAIT_CHECK(x.ndim == 4 && weight.ndim == 4 && out.ndim == 4, call,
              "images and weight have 4 axes, got ", shape_text(x), ", ", shape_text(weight), " and ",
              shape_text(out));
  PLAIT_CHECK(weight.contiguous(), call, "the weight must be contiguous");
  constexpr int64_t most = 1 << 30;
  PLAIT_CHECK(stride >= 1 && stride <= most && padding >= 0 && padding <= most, call, "stride ", stride,
              " must be at least 1, padding ", padding, " at least 0, and both at most ", most);
  ConvShape s{};
  s.batch = x.shape[0], s.height = x.shape[1], s.width = x.shape[2], s.inputs = x.shape[3];
  s.out_height = out.shape[1], s.out_width = out.shape[2], s.outputs = out.shape[3];
  s.kernel_height = weight.shape[1], s.kernel_width = weight.shape[2];
  s.stride = stride, s.padding = padding;
  const int64_t taps = s.kernel_height * s.kernel_width;
  PLAIT_CHECK(s.height >= 1 && s.width >= 1 && taps >= 1, call, "empty image or kernel: ", shape_text(x),
              " and ", shape_text(weight));
  PLAIT_CHECK(s.height + 2 * padding >= s.kernel_height && s.width + 2 * padding >= s.kernel_width, call,
              "kernel of ", shape_text(weight), " is larger than the image ", shape_text(x),
              " with padding ", padding);
  const int64_t first = input_first ? s.inputs : s.outputs, last = input_first ? s.outputs : s.inputs;
  PLAIT_CHECK(weight.shape[0] == first && weight.shape[3] == last, call, "weight ", shape_text(weight),
              input_first ? " (I, KH, KW, O)" : " (O, KH, KW, I)", " does not fit ", s.inputs,
              " input and ", s.outputs, " output channels");
  const int64_t high = (s.height + 2 * padding - s.kernel_height) / stride + 1;
  const int64_t wide = (s.width + 2 * padding - s.kernel_width) / stride + 1;
  PLAIT_CHECK(out.shape[0] == s.batch && s.out_height == high && s.out_width == wide, call,
              "output side is ", shape_text(out), ", expected (", s.batch, ", ", high, ", ", wide, ", ",
              s.outputs, ")");
  s.of_output = input_first ? 1 : taps * s.inputs;
  s.of_input = input_first ? taps * s.outputs : 1;
  s.of_tap = last;
  return s;
}

int64_t pixel_pitch(const char* call, const ConstArray& image) {
  int64_t pitch = image.shape[3], pixels = 1;
  if (image.size() == 0) return pitch;
  for (int axis = 2; axis >= 0; pixels *= image.shape[axis], axis--)
    if (image.shape[axis] > 1) {
      pitch = image.strides[axis] / pixels;
      break;
    }
  bool good = pitch >= image.shape[3] && (image.shape[3] <= 1 || image.strides[3] == 1);
  pixels = 1;
  for (int axis = 2; axis >= 0; pixels *= image.shape[axis], axis--)
    good = good && (image.shape[axis] <= 1 || image.strides[axis] == pixels * pitch);
  PLAIT_CHECK(good, call, "image ", shape_text(image),
              " must be contiguous, or a slice of channels of an image that is");
  return pitch;
}

}  // namespace plait
