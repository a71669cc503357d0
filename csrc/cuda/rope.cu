// Rotary position embedding, the same bits as cpu/rope.cpp: a block forms the angles of a few positions once, for all heads.
#include <algorithm>

#include "core/ops.hpp"
#include "core/rope.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"

namespace plait {
namespace {

constexpr int THREADS = 256;
constexpr int POSITIONS = 4;  // of a block
constexpr int PAIRS = 128;    // of a kernel: their frequencies are its argument

struct Frequencies {
  double of[PAIRS];
};
struct Tokens {  // (B, S, H) with these strides; (..., D) has stride 1
  int64_t sample, position, head;
};

// Turns the `count` pairs from first_pair on of each head of `pairs`.
template <int WIDTH, class T>
__global__ void __launch_bounds__(THREADS)
    rope_kernel(const T* x, Tokens from, T* out, Tokens to, int64_t samples, int64_t positions, int64_t heads, int64_t pairs,
                int64_t first_pair, int64_t count, int64_t first_position, float sign, Frequencies frequency) {
  __shared__ __align__(16) float cosine[POSITIONS][PAIRS], sine[POSITIONS][PAIRS];
  const int64_t first = int64_t(blockIdx.x) * POSITIONS, here = first + POSITIONS < positions ? POSITIONS : positions - first;
  for (int k = int(threadIdx.x); k < here * PAIRS; k += THREADS) {
    const int s = k / PAIRS, i = k % PAIRS;
    if (i < count) rope_angle(frequency.of[i], double(first_position + first + s), sign, &cosine[s][i], &sine[s][i]);
  }
  __syncthreads();
  const int64_t packs = count / WIDTH, work = here * heads * packs;
  for (int64_t b = blockIdx.y; b < samples; b += gridDim.y) {
#pragma unroll 2
    for (int64_t k = threadIdx.x; k < work; k += THREADS) {
      const int64_t i = k % packs * WIDTH, h = k / packs % heads, s = k / packs / heads;
      const T* low = x + b * from.sample + (first + s) * from.position + h * from.head + first_pair + i;
      T* turned = out + b * to.sample + (first + s) * to.position + h * to.head + first_pair + i;
      float v[WIDTH], w[WIDTH];
      load_pack(low, v);
      load_pack(low + pairs, w);
#pragma unroll
      for (int j = 0; j < WIDTH; j++) rotate_pair(v[j], w[j], cosine[s][i + j], sine[s][i + j]);
      store_pack(turned, v);
      store_pack(turned + pairs, w);
    }
  }
}

Tokens tokens(const ConstArray& x) {
  return {x.strides[0], x.strides[1], x.strides[2]};
}

}  // namespace

void rope(const ConstArray& x, float base, int64_t first_position, bool inverse, const Array& out) {
  const std::vector<double> frequency = rope_frequencies(x, base, out);
  const int64_t pairs = int64_t(frequency.size());
  if (x.size() == 0) return;
  PLAIT_FLOATS(x.dtype, "rope", [&](auto zero) {
    using T = decltype(zero);
    constexpr int WIDTH = PACK<T>;
    bool wide = pairs % WIDTH == 0;
    for (const ConstArray* a : {&x, static_cast<const ConstArray*>(&out)})
      for (int axis = 0; axis < 3; axis++) wide = wide && pack_aligned<T>(a->data, a->shape[axis] == 1 ? 0 : a->strides[axis]);
    const Grid grid{{unsigned((x.shape[1] + POSITIONS - 1) / POSITIONS), unsigned(std::min<int64_t>(x.shape[0], 65535))},
                    THREADS};
    for (int64_t first = 0; first < pairs; first += PAIRS) {
      const int64_t count = std::min<int64_t>(PAIRS, pairs - first);
      Frequencies some = {};
      std::copy_n(frequency.data() + first, count, some.of);
      launch(PLAIT_AT("rope"), wide ? rope_kernel<WIDTH, T> : rope_kernel<1, T>, grid, x.as<T>(), tokens(x), out.as<T>(),
             tokens(out), x.shape[0], x.shape[1], x.shape[2], pairs, first, count, first_position, inverse ? -1.0f : 1.0f,
             some);
    }
  });
}

}  // namespace plait
