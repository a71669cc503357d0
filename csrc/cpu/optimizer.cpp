// Optimizer steps on flat shards: one pass over memory, single float32 operations in a fixed order.
#include "core/optimizer.hpp"

#include "core/ops.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t WORTH_A_THREAD = 16384;
constexpr int64_t BLOCK = 1024;  // weights are rounded from a master still in L1

PLAIT_INLINE void adamw_body(const float* __restrict grad, AdamW o, float* __restrict master,
                             float* __restrict first, float* __restrict second, int64_t n) {
  for (int64_t i = 0; i < n; i++) adamw_step(o, grad[i], master[i], first[i], second[i]);
}

PLAIT_INLINE void sgd_body(const float* __restrict grad, Sgd o, float* __restrict master,
                           float* __restrict momentum, int64_t n) {
  for (int64_t i = 0; i < n; i++) sgd_step(o, grad[i], master[i], momentum[i]);
}

template <class T>
PLAIT_INLINE void round_body(const float* master, T* weight, int64_t n) {
  for (int64_t i = 0; i < n; i++) weight[i] = from_float<T>(master[i]);
}

PLAIT_KERNEL(adamw_run, adamw_body)
PLAIT_KERNEL(sgd_run, sgd_body)
PLAIT_KERNEL(round_run, round_body)

// Runs update(begin, end) over blocks and writes the rounded master to weight, unless it is the
// master.
template <class Update>
void run(const Array& master, const Array& weight, const char* call, Update update) {
  const float* from = master.as<float>();
  PLAIT_FLOATS(weight.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    T* to = weight.as<T>();
    const bool alias = weight.data == master.data;
    parallel_for(master.shape[0], WORTH_A_THREAD, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += BLOCK) {
        const int64_t n = end - i < BLOCK ? end - i : BLOCK;
        update(i, n);
        if (!alias) round_run(from + i, to + i, n);
      }
    });
  });
}

}  // namespace

void adamw(const ConstArray& grad, float grad_scale, float learning_rate, float beta1, float beta2,
           float epsilon, float weight_decay, int64_t step, const Array& master, const Array& first,
           const Array& second, const Array& weight) {
  const AdamW o =
      adamw_settings(grad_scale, learning_rate, beta1, beta2, epsilon, weight_decay, step);
  check_shard("adamw", "master", master, master);
  check_shard("adamw", "grad", grad, master);
  check_shard("adamw", "first", first, master);
  check_shard("adamw", "second", second, master);
  check_shard("adamw", "weight", weight, master);
  const float* g = grad.as<float>();
  float *w = master.as<float>(), *m = first.as<float>(), *v = second.as<float>();
  run(master, weight, "adamw",
      [=](int64_t i, int64_t n) { adamw_run(g + i, o, w + i, m + i, v + i, n); });
}

void sgd(const ConstArray& grad, float grad_scale, float learning_rate, float mu,
         float weight_decay, const Array& master, const Array& momentum, const Array& weight) {
  check_shard("sgd", "master", master, master);
  check_shard("sgd", "grad", grad, master);
  check_shard("sgd", "momentum", momentum, master);
  check_shard("sgd", "weight", weight, master);
  const Sgd o{grad_scale, learning_rate, mu, weight_decay};
  const float* g = grad.as<float>();
  float *w = master.as<float>(), *m = momentum.as<float>();
  run(master, weight, "sgd", [=](int64_t i, int64_t n) { sgd_run(g + i, o, w + i, m + i, n); });
}

}  // namespace plait
