// Random numbers from counters, the same bits as cpu/random.cpp: a thread takes whole blocks of Philox.
#include "core/ops.hpp"
#include "core/philox.hpp"
#include "core/random.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"

namespace plait {
namespace {

constexpr int THREADS = 256;

// A thread makes the four numbers 4 i ... 4 i + 3; out(0) is number `first`.
template <bool WIDE>
__global__ void __launch_bounds__(THREADS)
    normal_kernel(uint64_t seed, uint64_t stream, int64_t first, float mean, float std, int64_t n, float* out) {
  const int64_t blocks = (first + n + 3) / 4, step = int64_t(gridDim.x) * THREADS;
  for (int64_t i = first / 4 + int64_t(blockIdx.x) * THREADS + threadIdx.x; i < blocks; i += step) {
    const PhiloxBlock block = philox(uint64_t(i), stream, seed);
    float values[4];
    normal_pair(block.word[0], block.word[1], mean, std, values);
    normal_pair(block.word[2], block.word[3], mean, std, values + 2);
    const int64_t at = 4 * i - first;
    if (WIDE && at >= 0 && at + 4 <= n) {
      store_pack(out + at, values);
    } else {
#pragma unroll
      for (int k = 0; k < 4; k++)
        if (at + k >= 0 && at + k < n) out[at + k] = values[k];
    }
  }
}

struct Samples {  // of `rows` rows of `length` elements each
  int64_t rows, length, sample_stride, row_stride, first_sample, first_element;
};

// blockIdx.y takes rows of all samples, blockIdx.x packs of WIDTH elements of one. A pack of more than one element starts at a
// multiple of four in its sample.
template <int WIDTH, class T>
__global__ void __launch_bounds__(THREADS)
    dropout_kernel(const T* x, Samples shape, int64_t rows, uint64_t key, DropoutRule rule, T* out) {
  const int64_t step = int64_t(gridDim.x) * THREADS * WIDTH;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const int64_t b = row / shape.rows, s = row % shape.rows;
    const T* from = x + b * shape.sample_stride + s * shape.row_stride;
    T* to = out + row * shape.length;
    const uint64_t first = uint64_t(shape.first_element + s * shape.length), sample = uint64_t(shape.first_sample + b);
    for (int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * WIDTH; i < shape.length; i += step) {
      float v[WIDTH];
      load_pack(from + i, v);
      const uint64_t element = first + uint64_t(i);
      if constexpr (WIDTH == 1) {
        const PhiloxBlock block = philox(element / 4, sample, key);
        const uint32_t low = element % 2 ? block.word[1] : block.word[0], high = element % 2 ? block.word[3] : block.word[2];
        v[0] = (element % 4 < 2 ? low : high) >= rule.threshold ? v[0] * rule.scale : 0.0f;
      } else {
#pragma unroll
        for (int j = 0; j < WIDTH; j += 4) {
          const PhiloxBlock block = philox(element / 4 + uint64_t(j / 4), sample, key);
#pragma unroll
          for (int k = 0; k < 4; k++) v[j + k] = block.word[k] >= rule.threshold ? v[j + k] * rule.scale : 0.0f;
        }
      }
      store_pack(to + i, v);
    }
  }
}

}  // namespace

void random_normal(int64_t seed, int64_t stream, int64_t first_index, double mean, double std, const Array& out) {
  check_random_normal(first_index, out);
  float* to = out.as<float>();
  const int64_t n = out.size();
  if (n == 0) return;
  const bool wide = first_index % 4 == 0 && pack_aligned<float>(to, 0);
  launch(PLAIT_AT("random_normal"), wide ? normal_kernel<true> : normal_kernel<false>,
         {blocks_for(n / 4 + 2, THREADS), THREADS}, uint64_t(seed), uint64_t(stream), first_index, float(mean), float(std), n,
         to);
}

void dropout(const ConstArray& x, float probability, int64_t seed, int64_t step, int64_t layer, int64_t first_sample,
             int64_t first_position, const Array& out) {
  const DropoutRule rule = dropout_rule(x, probability, out);
  if (x.size() == 0) return;
  const int64_t positions = x.shape[1], channels = x.shape[2];
  // Positions without gaps run on as one long row.
  const bool flat = positions <= 1 || x.strides[1] == channels;
  Samples shape;
  shape.rows = flat ? 1 : positions, shape.length = flat ? positions * channels : channels;
  shape.sample_stride = x.strides[0], shape.row_stride = flat ? 0 : x.strides[1];
  shape.first_sample = first_sample, shape.first_element = first_position * channels;
  const int64_t rows = x.shape[0] * shape.rows;
  PLAIT_FLOATS(x.dtype, "dropout", [&](auto zero) {
    using T = decltype(zero);
    constexpr int WIDTH = PACK<T>;
    const T* from = x.as<T>();
    T* to = out.as<T>();
    const bool wide = pack_aligned<T>(from, x.strides[0]) && pack_aligned<T>(to, shape.length) &&
                      shape.row_stride % WIDTH == 0 && shape.first_element % 4 == 0;
    const int64_t packs = wide ? shape.length / WIDTH : shape.length;
    const unsigned columns = blocks_for(packs, THREADS);
    const unsigned lines =
        unsigned(std::min<int64_t>({rows, 65535, (blocks_for(rows * packs, THREADS) + columns - 1) / columns}));
    launch(PLAIT_AT("dropout"), wide ? dropout_kernel<WIDTH, T> : dropout_kernel<1, T>, {{columns, lines}, THREADS}, from,
           shape, rows, dropout_key(seed, step, layer), rule, to);
  });
}

}  // namespace plait
