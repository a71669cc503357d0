// Random numbers from counters, a block of lanes at a time.
#include "core/random.hpp"

#include <algorithm>
#include <cstring>

#include "core/ops.hpp"
#include "core/philox.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t LANES = 64;         // counters at once
constexpr int64_t BLOCK = 4 * LANES;  // words, elements
constexpr int64_t WORTH_A_THREAD = 8192;
constexpr uint64_t LOW = 0xffffffffu;

// words[4 l + w] = word w of the block at counter (first + l, high). 32-bit words live in 64-bit
// lanes: products come whole.
PLAIT_INLINE void philox_lanes(uint64_t first, uint64_t high, uint64_t key, uint32_t* words) {
  uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
  for (int l = 0; l < LANES; l++) {
    c0[l] = uint32_t(first + uint64_t(l)), c1[l] = uint32_t((first + uint64_t(l)) >> 32);
    c2[l] = uint32_t(high), c3[l] = uint32_t(high >> 32);
  }
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < PHILOX_ROUNDS; round++) {
    for (int l = 0; l < LANES; l++) {
      const uint32_t high0 = uint32_t((uint64_t(PHILOX_MULTIPLIER_0) * c0[l]) >> 32),
                     low0 = PHILOX_MULTIPLIER_0 * c0[l];
      const uint32_t high1 = uint32_t((uint64_t(PHILOX_MULTIPLIER_1) * c2[l]) >> 32),
                     low1 = PHILOX_MULTIPLIER_1 * c2[l];
      c0[l] = high1 ^ c1[l] ^ k0;
      c1[l] = low1;
      c2[l] = high0 ^ c3[l] ^ k1;
      c3[l] = low0;
    }
    k0 += PHILOX_WEYL_0, k1 += PHILOX_WEYL_1;
  }
  for (int l = 0; l < LANES; l++) {
    words[4 * l] = uint32_t(c0[l]), words[4 * l + 1] = uint32_t(c1[l]);
    words[4 * l + 2] = uint32_t(c2[l]), words[4 * l + 3] = uint32_t(c3[l]);
  }
}

PLAIT_INLINE void normal_body(uint64_t first, uint64_t stream, uint64_t seed, float mean, float std,
                              float* out) {
  uint32_t words[BLOCK];
  philox_lanes(first, stream, seed, words);
  for (int i = 0; i < BLOCK; i += 2) normal_pair(words[i], words[i + 1], mean, std, out + i);
}

PLAIT_KERNEL(normal_block, normal_body)

// Elements [first, first + n) of one sample; x and out point at the first.
template <class T>
PLAIT_INLINE void dropout_body(const T* x, T* out, int64_t n, uint64_t first, uint64_t sample,
                               uint64_t key, uint32_t threshold, float scale) {
  uint32_t words[BLOCK];
  for (int64_t done = 0; done < n;) {
    const uint64_t at = first + uint64_t(done), skip = at % 4;
    philox_lanes(at / 4, sample, key, words);
    const uint32_t* word = words + skip;
    const int64_t here = n - done < BLOCK - int64_t(skip) ? n - done : BLOCK - int64_t(skip);
    for (int64_t i = 0; i < here; i++) {
      const float kept = to_float(x[done + i]) * scale;
      out[done + i] = from_float<T>(word[i] >= threshold ? kept : 0.0f);
    }
    done += here;
  }
}

PLAIT_KERNEL(dropout_run, dropout_body)

}  // namespace

void random_normal(int64_t seed, int64_t stream, int64_t first_index, double mean, double std,
                   const Array& out) {
  check_random_normal(first_index, out);
  float* to = out.as<float>();
  const int64_t size = out.size();
  if (size == 0) return;
  const int64_t first_block = first_index / BLOCK,
                blocks = (first_index + size - 1) / BLOCK - first_block + 1;
  parallel_for(blocks, WORTH_A_THREAD / BLOCK, [&](int64_t begin, int64_t end) {
    float values[BLOCK];
    for (int64_t block = first_block + begin; block < first_block + end; block++) {
      normal_block(uint64_t(block * LANES), uint64_t(stream), uint64_t(seed), float(mean),
                   float(std), static_cast<float*>(values));
      const int64_t from = std::max(first_index, block * BLOCK);
      const int64_t until = std::min(first_index + size, (block + 1) * BLOCK);
      std::memcpy(to + from - first_index, values + from % BLOCK,
                  size_t(until - from) * sizeof(float));
    }
  });
}

void dropout(const ConstArray& x, float probability, int64_t seed, int64_t step, int64_t layer,
             int64_t first_sample, int64_t first_position, const Array& out) {
  const DropoutRule rule = dropout_rule(x, probability, out);
  if (x.size() == 0) return;
  const uint64_t key = dropout_key(seed, step, layer);
  const int64_t positions = x.shape[1], channels = x.shape[2];
  // Positions without gaps run on as one long row.
  const bool flat = positions <= 1 || x.strides[1] == channels;
  const int64_t length = flat ? positions * channels : channels,
                rows = flat ? x.shape[0] : x.shape[0] * positions;
  const int64_t piece = BLOCK * 16, pieces = (length + piece - 1) / piece;
  PLAIT_FLOATS(x.dtype, "dropout", [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(x.data);
    T* to = out.as<T>();
    const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / std::min(piece, length));
    parallel_for(rows * pieces, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t row = i / pieces, offset = i % pieces * piece,
                      n = std::min(piece, length - offset);
        const int64_t b = flat ? row : row / positions, s = flat ? 0 : row % positions;
        dropout_run(from + b * x.strides[0] + s * x.strides[1] + offset, to + row * length + offset,
                    n, uint64_t((first_position + s) * channels + offset),
                    uint64_t(first_sample + b), key, rule.threshold, rule.scale);
      }
    });
  });
}

}  // namespace plait
