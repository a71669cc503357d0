// Convolution's gradient of the weight: one chain of fused multiply-adds over samples, output rows and columns.
//
// Padding adds no terms. The images pass in chunks that a cache holds; between chunks the chains wait in grad_weight
// itself, which is float32, so chunks do not show in the bits.
#include <algorithm>

#include "core/ops.hpp"
#include "cpu/conv_shape.hpp"
#include "cpu/conv_tile.hpp"
#include "cpu/gemm_tile.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

thread_local Scratch packed_grad, widened_x;

constexpr int64_t CHUNK_FLOATS = 1 << 17;    // of x and grad together
constexpr int64_t WORTH_A_THREAD = 1 << 18;  // multiply-adds

// Samples [sample, sample + samples), output rows [row, row + rows) of each; samples is 1 unless rows are all.
struct Chunk {
  int64_t sample, samples, row, rows;
};

// The output places [begin, end) of one axis whose source place o * stride - padding + k is inside [0, length).
struct Inside {
  int64_t begin, end;
};

Inside inside(int64_t begin, int64_t end, int64_t k, int64_t stride, int64_t padding, int64_t length) {
  while (begin < end && begin * stride - padding + k < 0) begin++;
  while (begin < end && (end - 1) * stride - padding + k >= length) end--;
  return {begin, end};
}

// float32 images of a chunk: x from source row `first_row` on; grad as panels of TILE_LANES channels.
struct Images {
  const float *x, *grad;
  int64_t first_row, x_sample, grad_sample, grad_panel, grad_pixel;  // distances
};

template <class T>
Images load(const ConvShape& s, const Chunk& c, const T* grad, const T* x) {
  Images im{};
  const int64_t low = std::max<int64_t>(0, c.row * s.stride - s.padding);
  const int64_t high =
      std::min(s.height, (c.row + c.rows - 1) * s.stride - s.padding + s.kernel_height);
  const bool whole = c.samples > 1;
  im.first_row = whole ? 0 : low;
  im.x_sample = s.height * s.width * s.inputs;
  const int64_t x_count = whole ? c.samples * im.x_sample
                                : std::max<int64_t>(high - low, 0) * s.width * s.inputs;
  im.x = widened(x + c.sample * im.x_sample + im.first_row * s.width * s.inputs, x_count, widened_x);

  grad += (c.sample * s.out_height + c.row) * s.out_width * s.outputs;
  const int64_t pixels = c.samples * c.rows * s.out_width;
  if (dtype_of<T>::value == DType::float32 && s.outputs % TILE_LANES == 0) {
    im.grad = reinterpret_cast<const float*>(grad);
    im.grad_panel = TILE_LANES, im.grad_pixel = s.outputs;
  } else {
    im.grad_panel = pixels * TILE_LANES, im.grad_pixel = TILE_LANES;
    const int64_t panels = (s.outputs + TILE_LANES - 1) / TILE_LANES;
    float* packed = packed_grad.get<float>(panels * im.grad_panel);
    parallel_for(pixels, 64, [&](int64_t begin, int64_t end) {
      for (int64_t p = 0; p < panels; p++)
        pack_panels(grad + begin * s.outputs + p * TILE_LANES, 1, s.outputs,
                    std::min<int64_t>(TILE_LANES, s.outputs - p * TILE_LANES), end - begin, TILE_LANES, 0,
                    Packing::floats, packed + p * im.grad_panel + begin * TILE_LANES);
    });
    im.grad = packed;
  }
  im.grad_sample = c.rows * s.out_width * im.grad_pixel;
  return im;
}

// Continues the chains of input channels [i, i + m) and one panel of outputs at one tap.
void extend_chunk(const ConvShape& s, const Chunk& c, const Images& im, int64_t panel, int64_t kh, int64_t kw,
                  int64_t i, int64_t m, int64_t lanes, float* tile) {
  const Inside h = inside(c.row, c.row + c.rows, kh, s.stride, s.padding, s.height);
  const Inside w = inside(0, s.out_width, kw, s.stride, s.padding, s.width);
  if (h.begin == h.end || w.begin == w.end) return;
  const int64_t row = h.begin * s.stride - s.padding + kh - im.first_row;
  const int64_t column = w.begin * s.stride - s.padding + kw;
  Terms t;
  t.a = im.x + (row * s.width + column) * s.inputs + i;
  t.a_m = 1, t.a_k = s.stride * s.inputs, t.a_row = s.stride * s.width * s.inputs;
  t.b = im.grad + panel * im.grad_panel + ((h.begin - c.row) * s.out_width + w.begin) * im.grad_pixel;
  t.b_k = im.grad_pixel, t.b_row = s.out_width * im.grad_pixel;
  t.n = w.end - w.begin, t.rows = h.end - h.begin;
  for (int64_t n = 0; n < c.samples; n++, t.a += im.x_sample, t.b += im.grad_sample)
    extend_tile(int(m), lanes, t, tile);
}

void add_chunk(const ConvShape& s, const Chunk& c, const Images& im, bool continues, float* grad_weight) {
  const int64_t panels = (s.outputs + TILE_LANES - 1) / TILE_LANES;
  const int64_t taps = s.kernel_height * s.kernel_width, blocks = tile_count(s.inputs);
  const int64_t work = c.samples * c.rows * s.out_width * TILE_ROWS * TILE_LANES;
  parallel_for(panels * taps * blocks, 1 + WORTH_A_THREAD / work, [&](int64_t begin, int64_t end) {
    alignas(64) float tile[TILE_ROWS * TILE_LANES];
    for (int64_t item = begin; item < end; item++) {
      const int64_t panel = item / blocks / taps, tap = item / blocks % taps, block = item % blocks;
      const int64_t i = tile_begin(s.inputs, block), m = tile_begin(s.inputs, block + 1) - i;
      const int64_t lanes = std::min<int64_t>(TILE_LANES, s.outputs - panel * TILE_LANES);
      float* out = grad_weight + panel * TILE_LANES * s.of_output + tap * s.of_tap + i * s.of_input;
      std::fill(tile, tile + m * TILE_LANES, 0.0f);
      if (continues)
        for (int64_t k = 0; k < m; k++)
          for (int64_t lane = 0; lane < lanes; lane++)
            tile[k * TILE_LANES + lane] = out[k * s.of_input + lane * s.of_output];
      extend_chunk(s, c, im, panel, tap / s.kernel_width, tap % s.kernel_width, i, m, lanes, tile);
      for (int64_t k = 0; k < m; k++)
        for (int64_t lane = 0; lane < lanes; lane++)
          out[k * s.of_input + lane * s.of_output] = tile[k * TILE_LANES + lane];
    }
  });
}

template <class T>
void all_chunks(const ConvShape& s, const T* grad, const T* x, bool accumulate, float* grad_weight) {
  const int64_t row_floats = s.out_width * s.outputs + s.stride * s.width * s.inputs;
  const int64_t rows = std::max<int64_t>(1, CHUNK_FLOATS / row_floats);
  const int64_t samples = std::max<int64_t>(1, rows / s.out_height);
  bool continues = accumulate;
  for (int64_t b = 0; b < s.batch; b += samples)
    for (int64_t row = 0; row < s.out_height; row += std::min(rows, s.out_height)) {
      const Chunk c{b, std::min(samples, s.batch - b), row, std::min(rows, s.out_height - row)};
      add_chunk(s, c, load(s, c, grad, x), continues, grad_weight);
      continues = true;
    }
}

}  // namespace

void conv2d_backward_weight(const ConstArray& grad, const ConstArray& x, bool input_first, int64_t stride,
                            int64_t padding, bool accumulate, const Array& grad_weight) {
  const char* call = "conv2d_backward_weight";
  const ConvShape s = flattened(conv_shape(call, x, grad_weight, input_first, stride, padding, grad));
  PLAIT_CHECK(grad.contiguous() && x.contiguous(), call, "images must be contiguous");
  PLAIT_CHECK(grad.dtype == x.dtype, call, "types differ: ", name_of(grad.dtype), " and ", name_of(x.dtype));
  float* out = grad_weight.as<float>();
  if (s.batch == 0 && !accumulate) std::fill(out, out + grad_weight.size(), 0.0f);
  if (grad_weight.size() == 0) return;
  PLAIT_FLOATS(x.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    all_chunks(s, grad.as<T>(), x.as<T>(), accumulate, out);
  });
}

}  // namespace plait
