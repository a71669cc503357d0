// Convolution forward and its gradient of x: both gather pixels of a source image for the places of a destination image.
// bfloat16 goes to tensor cores, where a place outside the image is a term 0 * weight; float32 leaves such terms out.
#include "core/expect.hpp"
#include "core/leaves.hpp"
#include "core/ops.hpp"
#include "core/tree.hpp"
#include "cuda/conv_direct.cuh"
#include "cuda/conv_mma.cuh"
#include "cuda/conv_pixels.cuh"
#include "cuda/matmul_launch.cuh"

namespace plait {
namespace {

// The kernel's matrix: row (leaf, tap, channel of the leaf), `count` channels and zeros up to `width`.
struct Arrange {
  int64_t channel, count, width, taps, columns;
  int64_t of_channel, of_tap, of_column;  // where it lies
  int64_t stride;
};
template <class T>
__global__ void __launch_bounds__(256) arrange_kernel(const T* weight, Arrange a, T* out) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t t = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; t < a.taps * a.width * a.columns; t += step) {
    const int64_t column = t % a.columns, row = t / a.columns, c = row % a.width, tap = row / a.width;
    out[row * a.stride + column] =
        c < a.count ? weight[(a.channel + c) * a.of_channel + tap * a.of_tap + column * a.of_column] : from_float<T>(0.0f);
  }
}

struct Conv {
  bool backward;
  int64_t batch, pitch, channels, columns;  // of the source, of the destination
  int height, width, to_height, to_width, kernel_height, kernel_width, stride, padding;
  int64_t of_channel, of_tap, of_column;  // of the weight
  std::vector<int64_t> leaves;            // of the source's channels
  int64_t taps() const { return int64_t(kernel_height) * kernel_width; }
  int64_t places() const { return batch * to_height * to_width; }
};

// Rows of all leaves one after another, each leaf's channels filled up to a multiple of `unit`.
template <class T>
void arrange(const Conv& c, const T* weight, const std::vector<int64_t>& padded, int64_t stride, T* out) {
  for (size_t l = 0; l + 1 < c.leaves.size(); l++) {
    const Arrange a = {c.leaves[l],
                       c.leaves[l + 1] - c.leaves[l],
                       padded[l + 1] - padded[l],
                       c.taps(),
                       c.columns,
                       c.of_channel,
                       c.of_tap,
                       c.of_column,
                       stride};
    launch(PLAIT_AT("conv2d, kernel"), arrange_kernel<T>, {blocks_for(a.taps * a.width * a.columns, 256), 256}, weight, a,
           out + c.taps() * padded[l] * stride);
  }
}

template <class Tile>
void on_tensor_cores(const Conv& c, const ConstArray& source, const ConstArray& weight, const Array& out) {
  bool aligned = pixels_aligned(source.data, c.pitch);
  std::vector<int64_t> padded = {0}, bounds = {0};
  for (size_t l = 0; l + 1 < c.leaves.size(); l++) {
    aligned = aligned && c.leaves[l] % 8 == 0 && c.leaves[l + 1] % 8 == 0;
    padded.push_back(padded.back() + (c.leaves[l + 1] - c.leaves[l] + 7) / 8 * 8);
    bounds.push_back(padded.back() * c.taps());
  }
  const std::vector<int> merges = tree_merges(int64_t(bounds.size()) - 1);
  MatmulProblem p = {};
  p.m = c.places(), p.n = c.columns, p.k = bounds.back(), p.leaves = &bounds, p.merges = &merges;
  p.out = const_cast<void*>(out.data), p.out_dtype = out.dtype, p.row_stride_out = c.columns;
  const int64_t tiles = ((p.m + Tile::ROWS - 1) / Tile::ROWS) * ((p.n + Tile::COLUMNS - 1) / Tile::COLUMNS);
  const MatmulShare share = share_out(p, tiles, int64_t(Tile::PAIRS) * Tile::THREADS * 8, Tile::BLOCKS);
  const int64_t stride = (c.columns + 7) / 8 * 8, pixels = c.batch * c.height * c.width;
  const int64_t kernel_bytes = rounded_up(p.k * stride * 2), image_bytes = aligned ? 0 : rounded_up(pixels * padded.back() * 2),
                kept_bytes = rounded_up(share.kept_bytes);
  char* memory = static_cast<char*>(scratch_bytes(kernel_bytes + image_bytes + kept_bytes + share.partial_bytes));
  ConvCall call = {};
  call.kernel = reinterpret_cast<bfloat16*>(memory), call.kernel_stride = stride;
  arrange(c, weight.as<bfloat16>(), padded, stride, reinterpret_cast<bfloat16*>(memory));
  memory += kernel_bytes;
  call.image = {source.as<bfloat16>(), int(c.pitch),   c.height,  c.width,           c.to_height,        c.to_width,
                c.kernel_height,       c.kernel_width, c.padding, Divider(c.stride), Divider(c.to_width)};
  if (!aligned) {
    bfloat16* const copy = reinterpret_cast<bfloat16*>(memory);
    for (size_t l = 0; l + 1 < c.leaves.size(); l++)
      copy_pixels(source.as<bfloat16>() + c.leaves[l], c.pitch, pixels, c.leaves[l + 1] - c.leaves[l], copy + padded[l],
                  padded.back(), padded[l + 1] - padded[l]);
    call.image.data = copy, call.image.pitch = int(padded.back());
    memory += image_bytes;
  }
  float* const partial = reinterpret_cast<float*>(memory + kept_bytes);
  call.final = matmul_out(p);
  call.out = out_of_groups(share, call.final, partial);
  call.kept = reinterpret_cast<float2*>(memory), call.depth = share.plan.depth;
  call.leaves = share.plan.leaves;
  launch(PLAIT_AT("conv2d, mma.sync"), c.backward ? conv_kernel<Tile, true> : conv_kernel<Tile, false>,
         {share.blocks, Tile::THREADS, size_t(Tile::SHARED)}, call);
  finish(PLAIT_AT("conv2d, merge of leaves"), share, call.final, partial);
}

void direct(const Conv& c, const ConstArray& source, const ConstArray& weight, const Array& out) {
  const std::vector<int> merges = tree_merges(int64_t(c.leaves.size()) - 1);
  const LeafPlan plan = plan_leaves(c.leaves, merges, 0, merges.size());
  float* const kernel = scratch<float>(c.taps() * c.channels * c.columns);
  arrange(c, weight.as<float>(), c.leaves, c.columns, kernel);
  DirectCall<float, float> call = {
      source.as<float>(), kernel,     out.as<float>(), c.pitch,        c.places(), c.columns, c.height,           c.width,
      c.to_height,        c.to_width, c.kernel_height, c.kernel_width, c.stride,   c.padding, int(merges.size()), {}};
  std::copy_n(plan.leaves.leaf, merges.size(), call.leaf);
  launch(PLAIT_AT("conv2d"), c.backward ? direct_kernel<float, float, true> : direct_kernel<float, float, false>,
         {blocks_for(call.places * call.columns, 256), 256}, call);
}

void run(const char* name, Conv c, const ConstArray& source, const ConstArray& weight, const Array& out) {
  check_leaves(name, c.leaves, c.channels);
  PLAIT_CHECK(out.contiguous(), name, "the output must be contiguous");
  PLAIT_CHECK(source.dtype == weight.dtype && (out.dtype == source.dtype || out.dtype == DType::float32), name, "types are ",
              name_of(source.dtype), " and ", name_of(weight.dtype), ", output ", name_of(out.dtype),
              "; the output may be float32 or of the inputs' common type");
  expect_float(name, "x", source);
  if (c.leaves.size() < 2) c.leaves = {0, c.channels};
  check_small(name, source, c.pitch), check_small(name, out, c.columns);
  if (c.places() == 0 || c.columns == 0) return;
  const int64_t large = (c.places() + 127) / 128 * ((c.columns + 127) / 128);
  if (source.dtype == DType::float32)
    direct(c, source, weight, out);
  else if (c.columns > 64 && large >= device_properties().multiprocessors)
    on_tensor_cores<LargeTile>(c, source, weight, out);
  else
    on_tensor_cores<SmallTile>(c, source, weight, out);
}

}  // namespace

void conv2d_forward(const ConstArray& x, const ConstArray& weight, bool input_first, int64_t stride, int64_t padding,
                    const std::vector<int64_t>& leaves, const Array& out) {
  const char* call = "conv2d_forward";
  const ConvShape s = conv_shape(call, x, weight, input_first, stride, padding, out);
  run(call,
      {false, s.batch, pixel_pitch(call, x), s.inputs, s.outputs, int(s.height), int(s.width), int(s.out_height),
       int(s.out_width), int(s.kernel_height), int(s.kernel_width), int(stride), int(padding), s.of_input, s.of_tap,
       s.of_output, leaves},
      x, weight, out);
}

void conv2d_backward(const ConstArray& grad, const ConstArray& weight, bool input_first, int64_t stride, int64_t padding,
                     const std::vector<int64_t>& leaves, const Array& grad_x) {
  const char* call = "conv2d_backward";
  const ConvShape s = conv_shape(call, grad_x, weight, input_first, stride, padding, grad);
  run(call,
      {true, s.batch, pixel_pitch(call, grad), s.outputs, s.inputs, int(s.out_height), int(s.out_width), int(s.height),
       int(s.width), int(s.kernel_height), int(s.kernel_width), int(stride), int(padding), s.of_output, s.of_tap, s.of_input,
       leaves},
      grad, weight, grad_x);
}

}  // namespace plait
