// Convolution forward and its gradient of x: both gather pixels of a source image into a
// destination image.
//
// Pixels of the destination that meet the same taps of the kernel make the rows of one product of
// matrices: its inner dimension is (kernel row, kernel column, channel) of the taps that lie inside
// the source, so padding adds no terms, and an infinite weight spoils only what has a pixel under
// it.
#include <algorithm>

#include "core/ops.hpp"
#include "core/conv_shape.hpp"
#include "cpu/gemm.hpp"
#include "core/leaves.hpp"

namespace plait {
namespace {

// Destination places first + step * i (i < count) of one image axis; they meet the kernel at tap +
// tap_step * j (j < taps), where the source place is base + move * i + slide * j.
struct Places {
  int64_t first, step, count, tap, tap_step, taps, base, move, slide;
};

// Cut where another tap is inside a source of this length; taps outside are left out.
void add_inside(const Places& p, int64_t length, std::vector<Places>& found) {
  int64_t begin = 0, last_low = -1, last_high = -1;
  for (int64_t i = 0; i < p.count; i++) {
    auto outside = [&](int64_t j) {
      const int64_t place = p.base + p.move * i + p.slide * j;
      return place < 0 || place >= length;
    };
    int64_t low = 0, high = p.taps;
    while (low < high && outside(low)) low++;
    while (low < high && outside(high - 1)) high--;
    if (low == last_low && high == last_high) {
      found.back().count++;
      continue;
    }
    begin = i, last_low = low, last_high = high;
    found.push_back({p.first + p.step * begin, p.step, 1, p.tap + p.tap_step * low, p.tap_step,
                     high - low, p.base + p.move * begin + p.slide * low, p.move, p.slide});
  }
}

std::vector<Places> forward_places(int64_t length, int64_t out, int64_t kernel, int64_t stride,
                                   int64_t padding) {
  std::vector<Places> found;
  add_inside({0, 1, out, 0, 1, kernel, -padding, stride, 1}, length, found);
  return found;
}

// Pixels of x that are equal modulo the stride meet the same taps.
std::vector<Places> backward_places(int64_t out, int64_t length, int64_t kernel, int64_t stride,
                                    int64_t padding) {
  std::vector<Places> found;
  for (int64_t f = 0; f < std::min(stride, length); f++) {
    const int64_t tap = (f + padding) % stride, taps = (kernel - tap + stride - 1) / stride;
    add_inside({f, stride, (length - f + stride - 1) / stride, tap, stride,
                std::max<int64_t>(taps, 0), (f + padding - tap) / stride, 1, -1},
               out, found);
  }
  return found;
}

struct Gather {
  int64_t batch, source_height, source_width, source_channels, pitch;  // elements between pixels
  int64_t height, width, channels;                                     // destination
  int64_t kernel_height, kernel_width;
  int64_t of_channel, of_tap,
      of_source;  // weight strides: destination channel, tap, source channel
  std::vector<Places> rows, columns;
  std::vector<int64_t> leaves;
};

// Of the pixels at some rows and columns.
void multiply(const Gather& g, const Places& r, const Places& c, const ConstArray& source,
              const ConstArray& weight, const Array& out) {
  const int64_t row = g.source_width * g.pitch, out_row = g.width * g.channels;
  Unfolded pixels{
      {r.count, c.count, g.source_height * row, r.move * row, c.move * g.pitch}, {}, g.leaves, 1};
  Unfolded kernel{
      {1, std::max<int64_t>(g.channels, 1), 0, 0, g.of_channel}, {}, g.leaves, g.of_source};
  for (int64_t y = 0; y < r.taps; y++)
    for (int64_t x = 0; x < c.taps; x++) {
      pixels.taps.push_back((r.base + r.slide * y) * row + (c.base + c.slide * x) * g.pitch);
      const int64_t kh = r.tap + r.tap_step * y, kw = c.tap + c.tap_step * x;
      kernel.taps.push_back((kh * g.kernel_width + kw) * g.of_tap);
    }
  const int64_t taps = int64_t(pixels.taps.size());
  const Rows places{r.count, c.count, g.height * out_row, r.step * out_row, c.step * g.channels};
  const int64_t size = out.dtype == DType::float32 ? 4 : 2;
  Gemm product{g.batch * r.count * c.count,
               g.channels,
               taps * g.source_channels,
               {source.data, source.dtype, 0, 0, &pixels},
               {weight.data, weight.dtype, 0, 0, &kernel, true},
               static_cast<char*>(const_cast<void*>(out.data)) +
                   size * (r.first * out_row + c.first * g.channels),
               out.dtype,
               0};
  product.out_rows = &places;
  for (int64_t cut : g.leaves) product.leaves.push_back(taps * cut);
  gemm_parallel(product);
}

void run(const char* call, const Gather& g, const ConstArray& source, const ConstArray& weight,
         const Array& out) {
  check_leaves(call, g.leaves, g.source_channels);
  PLAIT_CHECK(out.contiguous(), call, "the output must be contiguous");
  PLAIT_CHECK(
      source.dtype == weight.dtype && (out.dtype == source.dtype || out.dtype == DType::float32),
      call, "types are ", name_of(source.dtype), " and ", name_of(weight.dtype), ", output ",
      name_of(out.dtype), "; the output may be float32 or of the inputs' common type");
  for (const Places& r : g.rows)
    for (const Places& c : g.columns) multiply(g, r, c, source, weight, out);
}

}  // namespace

void conv2d_forward(const ConstArray& x, const ConstArray& weight, bool input_first, int64_t stride,
                    int64_t padding, const std::vector<int64_t>& leaves, const Array& out) {
  const char* call = "conv2d_forward";
  const ConvShape s = conv_shape(call, x, weight, input_first, stride, padding, out);
  run(call,
      {s.batch, s.height, s.width, s.inputs, pixel_pitch(call, x), s.out_height, s.out_width,
       s.outputs, s.kernel_height, s.kernel_width, s.of_output, s.of_tap, s.of_input,
       forward_places(s.height, s.out_height, s.kernel_height, stride, padding),
       forward_places(s.width, s.out_width, s.kernel_width, stride, padding), leaves},
      x, weight, out);
}

void conv2d_backward(const ConstArray& grad, const ConstArray& weight, bool input_first,
                     int64_t stride, int64_t padding, const std::vector<int64_t>& leaves,
                     const Array& grad_x) {
  const char* call = "conv2d_backward";
  const ConvShape s = conv_shape(call, grad_x, weight, input_first, stride, padding, grad);
  run(call,
      {s.batch, s.out_height, s.out_width, s.outputs, pixel_pitch(call, grad), s.height, s.width,
       s.inputs, s.kernel_height, s.kernel_width, s.of_input, s.of_tap, s.of_output,
       backward_places(s.out_height, s.height, s.kernel_height, stride, padding),
       backward_places(s.out_width, s.width, s.kernel_width, stride, padding), leaves},
      grad, weight, grad_x);
}

}  // namespace plait
