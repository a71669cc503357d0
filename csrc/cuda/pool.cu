// Max and mean pooling, the same bits as cpu/pool.cpp: a thread takes a pack of channels of one output. Gradients are
// gathered, never scattered.
#include <algorithm>

#include "core/ops.hpp"
#include "core/pool.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"

namespace plait {
namespace {

constexpr int THREADS = 256;

// blockIdx.y takes rows of outputs, of all images; blockIdx.x places and packs of a row.
template <int WIDTH, class T>
__global__ void __launch_bounds__(THREADS) max_kernel(PoolShape s, const T* x, T* out, int32_t* index) {
  const int64_t packs = s.channels / WIDTH, step = int64_t(gridDim.x) * THREADS;
  for (int64_t row = blockIdx.y; row < s.batch * s.out_height; row += gridDim.y) {
    const int64_t oh = row % s.out_height, top = oh * s.stride - s.padding;
    const T* image = x + row / s.out_height * s.height * s.width * s.channels;
    const int64_t from_h = top > 0 ? top : 0, to_h = top + s.size < s.height ? top + s.size : s.height;
    for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < s.out_width * packs; i += step) {
      const int64_t ow = i / packs, c = i % packs * WIDTH, left = ow * s.stride - s.padding;
      const int64_t from_w = left > 0 ? left : 0, to_w = left + s.size < s.width ? left + s.size : s.width;
      float best[WIDTH];
      int32_t chosen[WIDTH];
      bool first = true;
      for (int64_t h = from_h; h < to_h; h++) {
#pragma unroll 3
        for (int64_t w = from_w; w < to_w; w++, first = false) {
          float v[WIDTH];
          load_pack(image + (h * s.width + w) * s.channels + c, v);
          const int32_t place = int32_t((h - top) * s.size + w - left);
#pragma unroll
          for (int k = 0; k < WIDTH; k++) {
            const bool taken = first || wins(v[k], best[k]);
            best[k] = taken ? v[k] : best[k];
            chosen[k] = taken ? place : chosen[k];
          }
        }
      }
      const int64_t at = (row * s.out_width + ow) * s.channels + c;
      store_pack(out + at, best);
      store_pack(index + at, chosen);
    }
  }
}

// The same over rows of grad_x.
template <int WIDTH, class T>
__global__ void __launch_bounds__(THREADS) max_backward_kernel(PoolShape s, const T* grad, const int32_t* index, T* grad_x) {
  const int64_t packs = s.channels / WIDTH, step = int64_t(gridDim.x) * THREADS;
  for (int64_t row = blockIdx.y; row < s.batch * s.height; row += gridDim.y) {
    const int64_t h = row % s.height, image = row / s.height * s.out_height * s.out_width * s.channels;
    for (int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x; i < s.width * packs; i += step) {
      const int64_t w = i / packs, c = i % packs * WIDTH;
      float sum[WIDTH] = {};
      for (int64_t oh = s.first_window(h); oh < s.out_height && oh * s.stride <= h + s.padding; oh++) {
#pragma unroll 2
        for (int64_t ow = s.first_window(w); ow < s.out_width && ow * s.stride <= w + s.padding; ow++) {
          const int64_t at = image + (oh * s.out_width + ow) * s.channels + c;
          const int32_t place = int32_t((h + s.padding - oh * s.stride) * s.size + w + s.padding - ow * s.stride);
          float g[WIDTH];
          int32_t chosen[WIDTH];
          load_pack(grad + at, g);
          load_pack(index + at, chosen);
#pragma unroll
          for (int k = 0; k < WIDTH; k++) sum[k] = chosen[k] == place ? sum[k] + g[k] : sum[k];
        }
      }
      store_pack(grad_x + (row * s.width + w) * s.channels + c, sum);
    }
  }
}

// blockIdx.y takes samples, blockIdx.x packs of channels.
template <int WIDTH, class T>
__global__ void __launch_bounds__(THREADS)
    mean_kernel(const T* x, int64_t samples, int64_t positions, int64_t channels, T* out) {
  const int64_t c = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * WIDTH;
  if (c >= channels) return;
  for (int64_t b = blockIdx.y; b < samples; b += gridDim.y) {
    const T* from = x + b * positions * channels + c;
    float sum[WIDTH] = {};
#pragma unroll 8
    for (int64_t s = 0; s < positions; s++) {
      float v[WIDTH];
      load_pack(from + s * channels, v);
#pragma unroll
      for (int k = 0; k < WIDTH; k++) sum[k] += v[k];
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum[k] = sum[k] / float(positions);
    store_pack(out + b * channels + c, sum);
  }
}

constexpr int SPREAD = 16;  // positions of a block

template <int WIDTH, class T>
__global__ void __launch_bounds__(THREADS)
    spread_kernel(const T* grad, int64_t samples, int64_t positions, int64_t channels, T* grad_x) {
  const int64_t c = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * WIDTH;
  if (c >= channels) return;
  for (int64_t b = blockIdx.y; b < samples; b += gridDim.y) {
    float share[WIDTH];
    load_pack(grad + b * channels + c, share);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) share[k] = share[k] / float(positions);
    for (int64_t first = int64_t(blockIdx.z) * SPREAD; first < positions; first += int64_t(gridDim.z) * SPREAD)
      for (int64_t s = first; s < first + SPREAD && s < positions; s++)
        store_pack(grad_x + (b * positions + s) * channels + c, share);
  }
}

unsigned lines(int64_t n) {
  return unsigned(std::min<int64_t>(n, 65535));
}
unsigned blocks_of(int64_t packs) {
  return unsigned((packs + THREADS - 1) / THREADS);
}

}  // namespace

void max_pool_forward(const ConstArray& x, int64_t size, int64_t stride, int64_t padding, const Array& out,
                      const Array& index) {
  const At at = PLAIT_AT("max_pool_forward");
  const PoolShape s = pool_shape(at.kernel, x, out, index, size, stride, padding);
  PLAIT_FLOATS(x.dtype, at.kernel, [&](auto zero) {
    using T = decltype(zero);
    const bool wide =
        pack_aligned<T>(x.data, s.channels, 4) && pack_aligned<T>(out.data, 0, 4) && pack_aligned<int32_t>(index.data, 0, 4);
    const Grid grid{{blocks_for(s.out_width * s.channels / (wide ? 4 : 1), THREADS), lines(s.batch * s.out_height)}, THREADS};
    launch(at, wide ? max_kernel<4, T> : max_kernel<1, T>, grid, s, x.as<T>(), out.as<T>(), index.as<int32_t>());
  });
}

void max_pool_backward(const ConstArray& grad, const ConstArray& index, int64_t size, int64_t stride, int64_t padding,
                       const Array& grad_x) {
  const At at = PLAIT_AT("max_pool_backward");
  const PoolShape s = pool_shape(at.kernel, grad_x, grad, index, size, stride, padding);
  PLAIT_FLOATS(grad.dtype, at.kernel, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = pack_aligned<T>(grad.data, s.channels, 4) && pack_aligned<T>(grad_x.data, 0, 4) &&
                      pack_aligned<int32_t>(index.data, 0, 4);
    const Grid grid{{blocks_for(s.width * s.channels / (wide ? 4 : 1), THREADS), lines(s.batch * s.height)}, THREADS};
    launch(at, wide ? max_backward_kernel<4, T> : max_backward_kernel<1, T>, grid, s, grad.as<T>(), index.as<int32_t>(),
           grad_x.as<T>());
  });
}

void mean_pool_forward(const ConstArray& x, const Array& out) {
  const At at = PLAIT_AT("mean_pool_forward");
  check_mean_pool(at.kernel, x, out);
  const int64_t samples = x.shape[0], positions = x.shape[1], channels = x.shape[2];
  PLAIT_FLOATS(x.dtype, at.kernel, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = pack_aligned<T>(x.data, channels, 2) && pack_aligned<T>(out.data, 0, 2);
    launch(at, wide ? mean_kernel<2, T> : mean_kernel<1, T>, {{blocks_of(channels / (wide ? 2 : 1)), lines(samples)}, THREADS},
           x.as<T>(), samples, positions, channels, out.as<T>());
  });
}

void mean_pool_backward(const ConstArray& grad, const Array& grad_x) {
  const At at = PLAIT_AT("mean_pool_backward");
  check_mean_pool(at.kernel, grad_x, grad);
  const int64_t samples = grad_x.shape[0], positions = grad_x.shape[1], channels = grad_x.shape[2];
  PLAIT_FLOATS(grad.dtype, at.kernel, [&](auto zero) {
    using T = decltype(zero);
    constexpr int WIDTH = PACK<T>;
    const bool wide = pack_aligned<T>(grad.data, channels) && pack_aligned<T>(grad_x.data, 0);
    const Grid grid{{blocks_of(channels / (wide ? WIDTH : 1)), lines(samples), lines((positions + SPREAD - 1) / SPREAD)},
                    THREADS};
    launch(at, wide ? spread_kernel<WIDTH, T> : spread_kernel<1, T>, grid, grad.as<T>(), samples, positions, channels,
           grad_x.as<T>());
  });
}

}  // namespace plait
