// Optimizer steps on flat shards: one pass over memory, four elements a thread; the bits of cpu/optimizer.cpp.
#include "core/ops.hpp"
#include "core/optimizer.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"

namespace plait {
namespace {

constexpr int THREADS = 256;

struct Flat {  // second is null for SGD
  const float* grad;
  float *master, *first, *second;
};

PLAIT_INLINE void step_of(const AdamW& o, float grad, float& master, float& first, float& second) {
  adamw_step(o, grad, master, first, second);
}
PLAIT_INLINE void step_of(const Sgd& o, float grad, float& master, float& first, float&) {
  sgd_step(o, grad, master, first);
}

template <int WIDTH, class Settings, class T>
__device__ __forceinline__ void update(const Settings& o, const Flat& x, T* weight, int64_t at) {
  constexpr bool TWO = std::is_same_v<Settings, AdamW>;
  float grad[WIDTH], master[WIDTH], first[WIDTH], second[WIDTH] = {};
  load_pack(x.grad + at, grad);
  load_pack(x.master + at, master);
  load_pack(x.first + at, first);
  if constexpr (TWO) load_pack(x.second + at, second);
#pragma unroll
  for (int k = 0; k < WIDTH; k++) step_of(o, grad[k], master[k], first[k], second[k]);
  store_pack(x.master + at, master);
  store_pack(x.first + at, first);
  if constexpr (TWO) store_pack(x.second + at, second);
  if (weight) store_pack(weight + at, master);
}

template <int WIDTH, class Settings, class T>
__global__ void __launch_bounds__(THREADS) update_kernel(Settings o, Flat x, T* weight, int64_t n) {
  const int64_t packs = n / WIDTH, step = int64_t(gridDim.x) * THREADS;
  const int64_t thread = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  for (int64_t i = thread; i < packs; i += step) update<WIDTH>(o, x, weight, i * WIDTH);
  if (packs * WIDTH + thread < n) update<1>(o, x, weight, packs * WIDTH + thread);
}

template <class Settings>
void run(const At& at, const Settings& o, const Flat& x, int64_t n, const Array& weight) {
  PLAIT_FLOATS(weight.dtype, at.kernel, [&](auto zero) {
    using T = decltype(zero);
    T* to = weight.as<T>();
    const bool wide = pack_aligned<float>(x.grad, 0) && pack_aligned<float>(x.master, 0) && pack_aligned<float>(x.first, 0) &&
                      pack_aligned<float>(x.second, 0) && pack_aligned<T>(to, 0, 4);
    if (weight.data == x.master) to = nullptr;
    launch(at, wide ? update_kernel<4, Settings, T> : update_kernel<1, Settings, T>,
           {blocks_for(wide ? (n + 3) / 4 : n, THREADS), THREADS}, o, x, to, n);
  });
}

}  // namespace

void adamw(const ConstArray& grad, float grad_scale, float learning_rate, float beta1, float beta2, float epsilon,
           float weight_decay, int64_t step, const Array& master, const Array& first, const Array& second,
           const Array& weight) {
  const At at = PLAIT_AT("adamw");
  const AdamW o = adamw_settings(grad_scale, learning_rate, beta1, beta2, epsilon, weight_decay, step);
  check_shard(at.kernel, "master", master, master);
  check_shard(at.kernel, "grad", grad, master);
  check_shard(at.kernel, "first", first, master);
  check_shard(at.kernel, "second", second, master);
  check_shard(at.kernel, "weight", weight, master);
  run(at, o, {grad.as<float>(), master.as<float>(), first.as<float>(), second.as<float>()}, master.shape[0], weight);
}

void sgd(const ConstArray& grad, float grad_scale, float learning_rate, float mu, float weight_decay, const Array& master,
         const Array& momentum, const Array& weight) {
  const At at = PLAIT_AT("sgd");
  check_shard(at.kernel, "master", master, master);
  check_shard(at.kernel, "grad", grad, master);
  check_shard(at.kernel, "momentum", momentum, master);
  check_shard(at.kernel, "weight", weight, master);
  run(at, Sgd{grad_scale, learning_rate, mu, weight_decay},
      {grad.as<float>(), master.as<float>(), momentum.as<float>(), nullptr}, master.shape[0], weight);
}

}  // namespace plait
