// Convolution's gradient of the weight: for each tap a product of two matrices over the outputs
// that have a pixel under it, sample by sample. Padding adds no terms.
#include <algorithm>

#include "core/ops.hpp"
#include "core/conv_shape.hpp"
#include "cpu/gemm.hpp"
#include "core/leaves.hpp"

namespace plait {
namespace {

// The output places [begin, begin + count) of one axis whose source place o * stride - padding + k
// is inside [0, length).
struct Inside {
  int64_t begin, count;
};

Inside inside(int64_t out, int64_t k, int64_t stride, int64_t padding, int64_t length) {
  int64_t begin = 0, end = out;
  while (begin < end && begin * stride - padding + k < 0) begin++;
  while (begin < end && (end - 1) * stride - padding + k >= length) end--;
  return {begin, end - begin};
}

}  // namespace

void conv2d_backward_weight(const ConstArray& grad, const ConstArray& x, bool input_first,
                            int64_t stride, int64_t padding, const std::vector<int64_t>& leaves,
                            const std::vector<int>& merges, int64_t slot, bool accumulate,
                            const Array& grad_weight) {
  const char* call = "conv2d_backward_weight";
  PLAIT_CHECK(grad_weight.ndim == 5 && grad_weight.dtype == DType::float32, call, "grad_weight is ",
              shape_text(grad_weight), ", must be a float32 stack of weights");
  Array one = grad_weight;  // of the stack
  one.ndim = 4;
  std::copy_n(grad_weight.shape + 1, 4, one.shape);
  std::copy_n(grad_weight.strides + 1, 4, one.strides);
  const ConvShape s = conv_shape(call, x, one, input_first, stride, padding, grad);
  PLAIT_CHECK(grad.dtype == x.dtype, call, "types differ: ", name_of(grad.dtype), " and ",
              name_of(x.dtype));
  check_leaves(call, leaves, s.batch);
  check_merges(call, leaves, merges, slot, accumulate, grad_weight.shape[0]);
  const int64_t x_pitch = pixel_pitch(call, x), grad_pitch = pixel_pitch(call, grad);
  const int64_t x_row = s.width * x_pitch, grad_row = s.out_width * grad_pitch;
  std::vector<Unfolded> unfolded;  // two for each tap; products point at them
  unfolded.reserve(size_t(2 * s.kernel_height * s.kernel_width));
  std::vector<Gemm> products;
  for (int64_t kh = 0; kh < s.kernel_height; kh++)
    for (int64_t kw = 0; kw < s.kernel_width; kw++) {
      const Inside h = inside(s.out_height, kh, stride, padding, s.height);
      const Inside w = inside(s.out_width, kw, stride, padding, s.width);
      const int64_t count = h.count * w.count;
      const int64_t rows = std::max<int64_t>(h.count, 1), columns = std::max<int64_t>(w.count, 1);
      unfolded.push_back({{rows, columns, s.out_height * grad_row, grad_row, grad_pitch},
                          {h.begin * grad_row + w.begin * grad_pitch},
                          {0, s.outputs},
                          1});
      unfolded.push_back({{rows, columns, s.height * x_row, stride * x_row, stride * x_pitch},
                          {(h.begin * stride - padding + kh) * x_row +
                           (w.begin * stride - padding + kw) * x_pitch},
                          {0, s.inputs},
                          1});
      Operand a{grad.data, grad.dtype, 0, 0, &unfolded.end()[-2]};
      Operand b{x.data, x.dtype, 0, 0, &unfolded.back()};
      if (input_first) std::swap(a, b);
      a.transposed = true;
      const int64_t first = input_first ? s.inputs : s.outputs, last = s.of_tap;
      Gemm g{first,
             last,
             s.batch * count,
             a,
             b,
             const_cast<float*>(grad_weight.as<float>()) + (kh * s.kernel_width + kw) * last,
             DType::float32,
             s.kernel_height * s.kernel_width * last};
      g.accumulate = accumulate;
      for (int64_t bound : leaves) g.leaves.push_back(bound * count);
      g.merges = merges;
      g.slot = int(slot);
      g.slot_stride = grad_weight.strides[0];
      g.period = count;
      products.push_back(g);
    }
  gemm_parallel(products);
}

}  // namespace plait
