// Rotary position embedding (core/rope.hpp). No table is kept: a position's angles serve all
// samples and heads.
#include <algorithm>
#include <vector>

#include "core/ops.hpp"
#include "cpu/math.hpp"
#include "cpu/scratch.hpp"
#include "cpu/threads.hpp"
#include "cpu/vec.hpp"

#include "core/rope.hpp"

namespace plait {
namespace {

PLAIT_INLINE void angles_body(const double* frequency, double position, int64_t pairs, float sign,
                              float* __restrict__ cosine, float* __restrict__ sine) {
  for (int64_t i = 0; i < pairs; i++)
    rope_angle(frequency[i], position, sign, cosine + i, sine + i);
}
PLAIT_KERNEL(angles, angles_body)

// All heads of one token.
template <class V, class T>
PLAIT_INLINE void rotate_body(const T* x, int64_t x_stride, int64_t heads, int64_t pairs,
                              const float* cosine, const float* sine, T* out, int64_t out_stride) {
  for (int64_t h = 0; h < heads; h++, x += x_stride, out += out_stride) {
    for (int64_t i = 0; i < pairs; i += WIDTH<V>) {
      const int64_t count = pairs - i;
      V a = load<V>(x + i, count), b = load<V>(x + pairs + i, count);
      rotate_pair(a, b, load<V>(cosine + i, count), load<V>(sine + i, count));
      store(out + i, a, count);
      store(out + pairs + i, b, count);
    }
  }
}
PLAIT_VECTOR_KERNEL(rotate, rotate_body)

constexpr int64_t BLOCK =
    16;  // positions whose angles are held at a time: long enough runs of memory in each sample

}  // namespace

void rope(const ConstArray& x, float base, int64_t first_position, bool inverse, const Array& out) {
  const std::vector<double> frequency = rope_frequencies(x, base, out);
  const int64_t samples = x.shape[0], positions = x.shape[1], heads = x.shape[2], size = x.shape[3];
  const int64_t pairs = size / 2;
  PLAIT_FLOATS(x.dtype, "rope", [&](auto zero) {
    using T = decltype(zero);
    const T* x_data = x.as<T>();
    T* out_data = out.as<T>();
    const int64_t grain = 1 + 16384 / (BLOCK * samples * heads * size + 1);
    parallel_for((positions + BLOCK - 1) / BLOCK, grain, [&](int64_t begin, int64_t end) {
      thread_local Scratch scratch;
      float* cosine = scratch.get<float>(2 * BLOCK * pairs);
      float* sine = cosine + BLOCK * pairs;
      for (int64_t first = begin * BLOCK; first < std::min(end * BLOCK, positions);
           first += BLOCK) {
        const int64_t count = std::min(BLOCK, positions - first);
        for (int64_t s = 0; s < count; s++)
          angles(frequency.data(), double(first_position + first + s), pairs,
                 inverse ? -1.0f : 1.0f, cosine + s * pairs, sine + s * pairs);
        for (int64_t b = 0; b < samples; b++)
          for (int64_t s = 0; s < count; s++)
            rotate(x_data + b * x.strides[0] + (first + s) * x.strides[1], x.strides[2], heads,
                   pairs, cosine + s * pairs, sine + s * pairs,
                   out_data + b * out.strides[0] + (first + s) * out.strides[1], out.strides[2]);
      }
    });
  });
}

}  // namespace plait
