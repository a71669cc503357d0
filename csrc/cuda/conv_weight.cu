// Convolution's gradient of the weight: for each tap a product of two matrices over the places that have a pixel under it,
// sample by sample. Padding adds no terms.
#include "core/expect.hpp"
#include "core/leaves.hpp"
#include "core/ops.hpp"
#include "cuda/conv_direct.cuh"
#include "cuda/conv_mma.cuh"
#include "cuda/conv_pixels.cuh"
#include "cuda/matmul_launch.cuh"

namespace plait {
namespace {

struct Weights {
  ConvShape shape;
  const ConstArray &grad, &x;
  int64_t grad_pitch, x_pitch;
  bool input_first, accumulate;
  std::vector<int64_t> leaves;  // of samples
  std::vector<int> merges;
  int64_t slot;
  float* out;
  int64_t slot_stride;

  int64_t taps() const { return shape.kernel_height * shape.kernel_width; }
  int64_t area() const { return shape.out_height * shape.out_width; }
  int64_t first() const { return input_first ? shape.inputs : shape.outputs; }
  int64_t last() const { return input_first ? shape.outputs : shape.inputs; }
};

template <class Tile>
void on_tensor_cores(const Weights& w) {
  const ConvShape& s = w.shape;
  std::vector<int64_t> bounds;
  for (int64_t sample : w.leaves) bounds.push_back(sample * w.area());
  MatmulProblem p = {};
  p.m = w.first(), p.n = w.taps() * w.last(), p.k = bounds.back(), p.leaves = &bounds, p.merges = &w.merges;
  p.out = w.out, p.row_stride_out = p.n, p.slot = w.slot, p.slots_stride = w.slot_stride;
  const int64_t tiles =
      w.taps() * ((w.first() + Tile::ROWS - 1) / Tile::ROWS) * ((w.last() + Tile::COLUMNS - 1) / Tile::COLUMNS);
  const MatmulShare share = share_out(p, tiles, int64_t(Tile::PAIRS) * Tile::THREADS * 8, Tile::BLOCKS);

  const bool grad_aligned = pixels_aligned(w.grad.data, w.grad_pitch), x_aligned = pixels_aligned(w.x.data, w.x_pitch);
  const int64_t grad_pitch = grad_aligned ? w.grad_pitch : (s.outputs + 7) / 8 * 8,
                x_pitch = x_aligned ? w.x_pitch : (s.inputs + 7) / 8 * 8;
  const int64_t places = s.batch * w.area(), pixels = s.batch * s.height * s.width;
  const int64_t grad_bytes = grad_aligned ? 0 : rounded_up(places * grad_pitch * 2),
                x_bytes = x_aligned ? 0 : rounded_up(pixels * x_pitch * 2), kept_bytes = rounded_up(share.kept_bytes);
  char* memory = static_cast<char*>(scratch_bytes(grad_bytes + x_bytes + kept_bytes + share.partial_bytes));
  const bfloat16 *grad = w.grad.as<bfloat16>(), *x = w.x.as<bfloat16>();
  if (!grad_aligned) {
    bfloat16* const copy = reinterpret_cast<bfloat16*>(memory);
    copy_pixels(grad, w.grad_pitch, places, s.outputs, copy, grad_pitch, grad_pitch);
    grad = copy;
  }
  memory += grad_bytes;
  if (!x_aligned) {
    bfloat16* const copy = reinterpret_cast<bfloat16*>(memory);
    copy_pixels(x, w.x_pitch, pixels, s.inputs, copy, x_pitch, x_pitch);
    x = copy;
  }
  memory += x_bytes;
  float* const partial = reinterpret_cast<float*>(memory + kept_bytes);

  ConvWeightCall call = {};
  call.image = {x,
                int(x_pitch),
                int(s.height),
                int(s.width),
                int(s.out_height),
                int(s.out_width),
                int(s.kernel_height),
                int(s.kernel_width),
                int(s.padding),
                Divider(int(s.stride)),
                Divider(int(s.out_width))};
  call.grad = grad, call.grad_pitch = int(grad_pitch), call.taps = int(w.taps());
  const MatmulOut whole = matmul_out(p);
  call.final = whole;
  call.out = out_of_groups(share, whole, partial);
  call.final.n = call.out.n = w.last();
  const bool even = w.last() % 2 == 0;  // so that every tap's columns begin at one
  call.final.pairs = call.final.pairs && even, call.out.pairs = call.out.pairs && even;
  call.accumulate = w.accumulate, call.slot = w.slot;
  call.kept = reinterpret_cast<float2*>(memory), call.depth = share.plan.depth;
  call.leaves = share.plan.leaves;
  launch(PLAIT_AT("conv2d_backward_weight, mma.sync"),
         w.input_first ? conv_weight_kernel<Tile, true> : conv_weight_kernel<Tile, false>,
         {share.blocks, Tile::THREADS, size_t(Tile::SHARED)}, call);
  finish(PLAIT_AT("conv2d_backward_weight, merge of leaves"), share, whole, partial);
}

void direct(const Weights& w) {
  const ConvShape& s = w.shape;
  const LeafPlan plan = plan_leaves(w.leaves, w.merges, w.slot, w.merges.size());
  DirectWeightCall call = {};
  call.grad = w.grad.as<float>(), call.image = w.x.as<float>(), call.out = w.out;
  call.grad_pitch = w.grad_pitch, call.pitch = w.x_pitch, call.area = w.area();
  call.slot_stride = w.slot_stride, call.slot = w.slot;
  call.height = int(s.height), call.width = int(s.width), call.to_width = int(s.out_width);
  call.kernel_height = int(s.kernel_height), call.kernel_width = int(s.kernel_width);
  call.stride = int(s.stride), call.padding = int(s.padding);
  call.first = w.first(), call.last = w.last(), call.input_first = w.input_first, call.accumulate = w.accumulate;
  call.leaves = int(w.merges.size());
  std::copy_n(plan.leaves.leaf, w.merges.size(), call.leaf);
  launch(PLAIT_AT("conv2d_backward_weight"), direct_weight_kernel,
         {unsigned((call.first * w.taps() * call.last + 127) / 128), 128}, call);
}

}  // namespace

void conv2d_backward_weight(const ConstArray& grad, const ConstArray& x, bool input_first, int64_t stride, int64_t padding,
                            const std::vector<int64_t>& leaves, const std::vector<int>& merges, int64_t slot, bool accumulate,
                            const Array& grad_weight) {
  const char* call = "conv2d_backward_weight";
  PLAIT_CHECK(grad_weight.ndim == 5 && grad_weight.dtype == DType::float32, call, "grad_weight is ", shape_text(grad_weight),
              ", must be a float32 stack of weights");
  Array one = grad_weight;  // of the stack
  one.ndim = 4;
  std::copy_n(grad_weight.shape + 1, 4, one.shape);
  std::copy_n(grad_weight.strides + 1, 4, one.strides);
  const ConvShape s = conv_shape(call, x, one, input_first, stride, padding, grad);
  PLAIT_CHECK(grad.dtype == x.dtype, call, "types differ: ", name_of(grad.dtype), " and ", name_of(x.dtype));
  check_leaves(call, leaves, s.batch);
  check_merges(call, leaves, merges, slot, accumulate, grad_weight.shape[0]);
  expect_float(call, "x", x);
  check_small(call, x, pixel_pitch(call, x)), check_small(call, grad, pixel_pitch(call, grad));
  Weights w = {s,  grad, x,    pixel_pitch(call, grad), pixel_pitch(call, x),  input_first, accumulate,
               {}, {},   slot, grad_weight.as<float>(), grad_weight.strides[0]};
  if (w.first() == 0 || w.last() == 0) return;
  for (const LeafPart& part : leaf_parts(call, merges, slot, grad_weight.shape[0])) {
    w.leaves.assign(leaves.begin() + long(part.first), leaves.begin() + long(part.last) + 1);
    w.merges.assign(merges.begin() + long(part.first), merges.begin() + long(part.last));
    w.slot = part.slot, w.accumulate = accumulate && part.first == 0;
    if (x.dtype == DType::float32)
      direct(w);
    else if (w.first() > 64 && w.last() > 64)
      on_tensor_cores<LargeTile>(w);
    else
      on_tensor_cores<SmallTile>(w);
  }
}

}  // namespace plait
