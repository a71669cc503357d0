// Convolutions as matrix products: what each output pixel sees is copied to a row of a matrix (places outside the image are
// zeros), leaf of channels by leaf, and multiplied by matmul's engines. Images are taken some samples at a time.
#include <algorithm>

#include "core/conv_shape.hpp"
#include "core/expect.hpp"
#include "core/leaves.hpp"
#include "core/ops.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"

namespace plait {
namespace {

constexpr int64_t MOST = int64_t(1) << 28;  // bytes of patches at once, unless one sample has more

// Destination pixel (y, x) under tap (kh, kw) sees source pixel (y * step + way * kh + first) / every, where that is whole
// and inside.
struct Sight {
  int64_t height, width, source_height, source_width;
  int64_t kernel_height, kernel_width;
  int64_t step, way, first, every;

  __device__ __forceinline__ bool source(int64_t y, int64_t x, int64_t kh, int64_t kw, int64_t* row, int64_t* column) const {
    const int64_t v = y * step + way * kh + first, u = x * step + way * kw + first;
    *row = v / every, *column = u / every;
    return v >= 0 && u >= 0 && v % every == 0 && u % every == 0 && *row < source_height && *column < source_width;
  }
};

// out (pixels, row) from column `begin` on = for each tap the channels [from, from + width) of the pixel seen.
template <class T, int WIDTH>
__global__ void __launch_bounds__(256) patches_kernel(const T* image, int64_t pitch, Sight s, int64_t pixels, int64_t from,
                                                      int64_t width, int64_t row, int64_t begin, T* out) {
  const int64_t taps = s.kernel_height * s.kernel_width, packs = width / WIDTH, total = pixels * taps * packs;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t channel = i % packs * WIDTH, tap = i / packs % taps, pixel = i / packs / taps;
    const int64_t x = pixel % s.width, y = pixel / s.width % s.height, b = pixel / s.width / s.height;
    int64_t v, u;
    float values[WIDTH] = {};
    if (s.source(y, x, tap / s.kernel_width, tap % s.kernel_width, &v, &u))
      load_pack(image + ((b * s.source_height + v) * s.source_width + u) * pitch + from + channel, values);
    store_pack(out + pixel * row + begin + tap * width + channel, values);
  }
}

// out (taps * width, columns) of one leaf = the weight's elements (source channel, tap, destination channel).
template <class T>
__global__ void __launch_bounds__(256) weight_kernel(const T* weight, int64_t taps, int64_t from, int64_t width, int64_t columns,
                                                     int64_t of_source, int64_t of_tap, int64_t of_column, T* out) {
  const int64_t total = taps * width * columns, stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t column = i % columns, channel = i / columns % width, tap = i / columns / width;
    out[i] = weight[(from + channel) * of_source + tap * of_tap + column * of_column];
  }
}

ConstArray matrix(const void* data, DType dtype, int64_t rows, int64_t columns, int64_t stride) {
  ConstArray x;
  x.data = data, x.dtype = dtype, x.ndim = 2;
  x.shape[0] = rows, x.shape[1] = columns;
  x.strides[0] = stride, x.strides[1] = 1;
  return x;
}
Array writable(const ConstArray& x) {
  Array out;
  static_cast<ConstArray&>(out) = x;
  return out;
}

// Rows of `samples` images, one a destination pixel: leaf by leaf of channels, in a leaf tap by tap.
template <class T>
void make_patches(const T* image, int64_t pitch, const Sight& s, int64_t samples, const std::vector<int64_t>& leaves, T* out) {
  const int64_t taps = s.kernel_height * s.kernel_width, pixels = samples * s.height * s.width, row = taps * leaves.back();
  for (size_t leaf = 0; leaf + 1 < leaves.size(); leaf++) {
    const int64_t from = leaves[leaf], width = leaves[leaf + 1] - from, begin = taps * from;
    const bool wide = width % PACK<T> == 0 && from % PACK<T> == 0 && row % PACK<T> == 0 && pack_aligned<T>(image, pitch);
    const int64_t total = pixels * taps * width / (wide ? PACK<T> : 1);
    if (total > 0)
      launch(PLAIT_AT("conv2d, patches"), wide ? patches_kernel<T, PACK<T>> : patches_kernel<T, 1>, {blocks_for(total, 256), 256},
             image, pitch, s, pixels, from, width, row, begin, out);
  }
}

// out (B, height, width, columns) from the images of source (pitch between pixels), whose channels are cut at leaves.
void gather(const char* call, const Sight& s, int64_t batch, const ConstArray& source, int64_t pitch, const ConstArray& weight,
            int64_t of_source, int64_t of_tap, int64_t of_column, int64_t columns, const std::vector<int64_t>& leaves,
            const Array& out) {
  check_leaves(call, leaves, source.shape[3]);
  PLAIT_CHECK(out.contiguous(), call, "the output must be contiguous");
  PLAIT_CHECK(source.dtype == weight.dtype && (out.dtype == source.dtype || out.dtype == DType::float32), call, "types are ",
              name_of(source.dtype), " and ", name_of(weight.dtype), ", output ", name_of(out.dtype),
              "; the output may be float32 or of the inputs' common type");
  if (out.size() == 0) return;
  PLAIT_FLOATS(source.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    const int64_t taps = s.kernel_height * s.kernel_width, depth = taps * leaves.back(), pixels = s.height * s.width;
    std::vector<int64_t> cut;
    for (int64_t leaf : leaves) cut.push_back(taps * leaf);
    T* const kernel = scratch<T>(std::max<int64_t>(depth * columns, 1), Use::weights);
    for (size_t leaf = 0; leaf + 1 < leaves.size(); leaf++) {
      const int64_t from = leaves[leaf], width = leaves[leaf + 1] - from;
      launch(PLAIT_AT("conv2d, weight"), weight_kernel<T>, {blocks_for(taps * width * columns, 256), 256}, weight.as<T>(), taps,
             from, width, columns, of_source, of_tap, of_column, kernel + taps * from * columns);
    }
    const int64_t row_bytes = std::max<int64_t>(pixels * depth * int64_t(sizeof(T)), 1);
    const int64_t step = std::min(batch, std::max<int64_t>(1, MOST / row_bytes));
    T* const patches = scratch<T>(std::max<int64_t>(step * pixels * depth, 1), Use::patches);
    const T* image = static_cast<const T*>(source.data);
    char* to = static_cast<char*>(const_cast<void*>(out.data));
    for (int64_t first = 0; first < batch; first += step) {
      const int64_t samples = std::min(step, batch - first), rows = samples * pixels;
      make_patches(image + first * s.source_height * s.source_width * pitch, pitch, s, samples, leaves, patches);
      const ConstArray some = matrix(to + first * pixels * columns * size_of(out.dtype), out.dtype, rows, columns, columns);
      matmul(matrix(patches, source.dtype, rows, depth, depth), matrix(kernel, source.dtype, depth, columns, columns), false,
             false, cut, false, 0, std::nullopt, writable(some));
    }
  });
}

Sight forward_sight(const ConvShape& s) {
  return {s.out_height, s.out_width, s.height, s.width, s.kernel_height, s.kernel_width, s.stride, 1, -s.padding, 1};
}
Sight backward_sight(const ConvShape& s) {
  return {s.height, s.width, s.out_height, s.out_width, s.kernel_height, s.kernel_width, 1, -1, s.padding, s.stride};
}

}  // namespace

void conv2d_forward(const ConstArray& x, const ConstArray& weight, bool input_first, int64_t stride, int64_t padding,
                    const std::vector<int64_t>& leaves, const Array& out) {
  const ConvShape s = conv_shape("conv2d_forward", x, weight, input_first, stride, padding, out);
  gather("conv2d_forward", forward_sight(s), s.batch, x, pixel_pitch("conv2d_forward", x), weight, s.of_input, s.of_tap,
         s.of_output, s.outputs, leaves, out);
}

void conv2d_backward(const ConstArray& grad, const ConstArray& weight, bool input_first, int64_t stride, int64_t padding,
                     const std::vector<int64_t>& leaves, const Array& grad_x) {
  const ConvShape s = conv_shape("conv2d_backward", grad_x, weight, input_first, stride, padding, grad);
  gather("conv2d_backward", backward_sight(s), s.batch, grad, pixel_pitch("conv2d_backward", grad), weight, s.of_output, s.of_tap,
         s.of_input, s.inputs, leaves, grad_x);
}

// One product for each tap, as its part of the weight lies in one piece with rows of equal distance.
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
  const int64_t pitch = pixel_pitch(call, x), grad_pitch = pixel_pitch(call, grad);
  const int64_t taps = s.kernel_height * s.kernel_width, pixels = s.out_height * s.out_width, rows = s.batch * pixels;
  if (one.size() == 0) return;
  std::vector<int64_t> cut;
  for (int64_t leaf : leaves) cut.push_back(leaf * pixels);
  PLAIT_FLOATS(x.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    T* const patches = scratch<T>(std::max<int64_t>(rows * taps * s.inputs, 1), Use::patches);
    make_patches(static_cast<const T*>(x.data), pitch, forward_sight(s), s.batch, {0, s.inputs}, patches);
    const ConstArray outputs = matrix(grad.data, grad.dtype, rows, s.outputs, grad_pitch);
    for (int64_t tap = 0; tap < taps; tap++) {
      const ConstArray seen = matrix(patches + tap * s.inputs, x.dtype, rows, s.inputs, taps * s.inputs);
      Array part = grad_weight;  // (slots, first, last) of this tap
      part.ndim = 3;
      part.data = one.as<float>() + tap * s.of_tap;
      part.shape[1] = one.shape[0], part.shape[2] = one.shape[3];
      part.strides[1] = taps * s.of_tap, part.strides[2] = 1;
      matmul_backward_weight(input_first ? seen : outputs, input_first ? outputs : seen, cut, merges, slot, accumulate, pixels,
                             part);
    }
  });
}

}  // namespace plait
