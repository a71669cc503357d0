// Max and mean pooling. Gradients are gathered, never scattered: each element of grad_x is one float32 chain over its
// windows in ascending row and column, rounded once.
#include "core/pool.hpp"

#include <algorithm>

#include "core/ops.hpp"
#include "cpu/isa.hpp"
#include "cpu/scratch.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

thread_local Scratch sums;

constexpr int64_t THREAD_WORK = 1 << 14;  // elements worth a thread

// `place` is taken where x wins.
template <class T>
PLAIT_INLINE void take_greater_body(const T* x, int64_t n, int32_t place, float* best, int32_t* index) {
  for (int64_t c = 0; c < n; c++) {
    const float value = to_float(x[c]);
    const bool taken = wins(value, best[c]);
    best[c] = taken ? value : best[c];
    index[c] = taken ? place : index[c];
  }
}
PLAIT_KERNEL(take_greater, take_greater_body)

template <class T>
PLAIT_INLINE void start_body(const T* x, int64_t n, int32_t place, float* best, int32_t* index) {
  for (int64_t c = 0; c < n; c++) best[c] = to_float(x[c]), index[c] = place;
}
PLAIT_KERNEL(start, start_body)

template <class T>
PLAIT_INLINE void store_body(const float* x, int64_t n, T* out) {
  for (int64_t c = 0; c < n; c++) out[c] = from_float<T>(x[c]);
}
PLAIT_KERNEL(store, store_body)

template <class T>
PLAIT_INLINE void add_chosen_body(const T* grad, const int32_t* index, int64_t n, int32_t place, float* sum) {
  for (int64_t c = 0; c < n; c++) sum[c] = index[c] == place ? sum[c] + to_float(grad[c]) : sum[c];
}
PLAIT_KERNEL(add_chosen, add_chosen_body)

template <class T>
PLAIT_INLINE void mean_body(const T* x, int64_t positions, int64_t channels, float* sum, T* out) {
  for (int64_t c = 0; c < channels; c++) sum[c] = 0;
  for (int64_t s = 0; s < positions; s++)
    for (int64_t c = 0; c < channels; c++) sum[c] += to_float(x[s * channels + c]);
  const float count = float(positions);
  for (int64_t c = 0; c < channels; c++) out[c] = from_float<T>(sum[c] / count);
}
PLAIT_KERNEL(mean, mean_body)

template <class T>
PLAIT_INLINE void spread_body(const T* grad, int64_t positions, int64_t channels, T* grad_x) {
  const float count = float(positions);
  for (int64_t c = 0; c < channels; c++) grad_x[c] = from_float<T>(to_float(grad[c]) / count);
  for (int64_t s = 1; s < positions; s++)
    for (int64_t c = 0; c < channels; c++) grad_x[s * channels + c] = grad_x[c];
}
PLAIT_KERNEL(spread, spread_body)

template <class T>
void pool_row(const PoolShape& s, const T* x, int64_t oh, T* out, int32_t* index) {
  const int64_t top = oh * s.stride - s.padding;
  float* best = sums.get<float>(s.channels);
  for (int64_t ow = 0; ow < s.out_width; ow++, out += s.channels, index += s.channels) {
    const int64_t left = ow * s.stride - s.padding;
    bool first = true;
    for (int64_t h = std::max<int64_t>(top, 0); h < std::min(top + s.size, s.height); h++)
      for (int64_t w = std::max<int64_t>(left, 0); w < std::min(left + s.size, s.width); w++, first = false) {
        const T* pixel = x + (h * s.width + w) * s.channels;
        const int32_t place = int32_t((h - top) * s.size + w - left);
        if (first)
          start(pixel, s.channels, place, best, index);
        else
          take_greater(pixel, s.channels, place, best, index);
      }
    store(static_cast<const float*>(best), s.channels, out);
  }
}

template <class T>
void pool_row_backward(const PoolShape& s, const T* grad, const int32_t* index, int64_t h, T* grad_x) {
  float* sum = sums.get<float>(s.channels);
  for (int64_t w = 0; w < s.width; w++, grad_x += s.channels) {
    std::fill(sum, sum + s.channels, 0.0f);
    for (int64_t oh = s.first_window(h); oh < s.out_height && oh * s.stride <= h + s.padding; oh++)
      for (int64_t ow = s.first_window(w); ow < s.out_width && ow * s.stride <= w + s.padding; ow++) {
        const int64_t place = (h + s.padding - oh * s.stride) * s.size + w + s.padding - ow * s.stride;
        const int64_t at = (oh * s.out_width + ow) * s.channels;
        add_chosen(grad + at, index + at, s.channels, int32_t(place), sum);
      }
    store(static_cast<const float*>(sum), s.channels, grad_x);
  }
}

int64_t grain(int64_t elements) { return 1 + THREAD_WORK / (elements + 1); }

}  // namespace

void max_pool_forward(const ConstArray& x, int64_t size, int64_t stride, int64_t padding, const Array& out,
                      const Array& index) {
  const PoolShape s = pool_shape("max_pool_forward", x, out, index, size, stride, padding);
  PLAIT_FLOATS(x.dtype, "max_pool_forward", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.as<T>();
    T* to = out.as<T>();
    int32_t* place = index.as<int32_t>();
    const int64_t row = s.out_width * s.channels, image = s.height * s.width * s.channels;
    parallel_for(s.batch * s.out_height, grain(row * size * size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        pool_row(s, from + r / s.out_height * image, r % s.out_height, to + r * row, place + r * row);
    });
  });
}

void max_pool_backward(const ConstArray& grad, const ConstArray& index, int64_t size, int64_t stride,
                       int64_t padding, const Array& grad_x) {
  const PoolShape s = pool_shape("max_pool_backward", grad_x, grad, index, size, stride, padding);
  PLAIT_FLOATS(grad.dtype, "max_pool_backward", [&](auto zero) {
    using T = decltype(zero);
    const T* from = grad.as<T>();
    T* to = grad_x.as<T>();
    const int32_t* place = index.as<int32_t>();
    const int64_t row = s.width * s.channels, image = s.out_height * s.out_width * s.channels;
    parallel_for(s.batch * s.height, grain(row * size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        const int64_t b = r / s.height;
        pool_row_backward(s, from + b * image, place + b * image, r % s.height, to + r * row);
      }
    });
  });
}

void mean_pool_forward(const ConstArray& x, const Array& out) {
  check_mean_pool("mean_pool_forward", x, out);
  PLAIT_FLOATS(x.dtype, "mean_pool_forward", [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.as<T>();
    T* to = out.as<T>();
    const int64_t positions = x.shape[1], channels = x.shape[2];
    parallel_for(x.shape[0], grain(positions * channels), [&](int64_t begin, int64_t end) {
      float* sum = sums.get<float>(channels);
      for (int64_t b = begin; b < end; b++)
        mean(from + b * positions * channels, positions, channels, sum, to + b * channels);
    });
  });
}

void mean_pool_backward(const ConstArray& grad, const Array& grad_x) {
  check_mean_pool("mean_pool_backward", grad_x, grad);
  PLAIT_FLOATS(grad.dtype, "mean_pool_backward", [&](auto zero) {
    using T = decltype(zero);
    const T* from = grad.as<T>();
    T* to = grad_x.as<T>();
    const int64_t positions = grad_x.shape[1], channels = grad_x.shape[2];
    parallel_for(grad.shape[0], grain(positions * channels), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; b++)
        spread(from + b * channels, positions, channels, to + b * positions * channels);
    });
  });
}

}  // namespace plait
