// Optimizer steps on flat shards: one pass over memory, single float32 operations in a fixed order.
#include <cmath>

#include "core/ops.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t WORTH_A_THREAD = 16384;
constexpr int64_t BLOCK = 1024;  // weights are rounded from a master still in L1

struct AdamW {
  float grad_scale, beta1, beta2, rest1, rest2;  // rest = 1 - beta
  float decay;                                   // 1 - learning_rate * weight_decay
  float rate;                                    // learning_rate / (1 - beta1^step)
  float scale2;                                  // 1 / sqrt(1 - beta2^step)
  float epsilon;
};

PLAIT_INLINE void adamw_body(const float* __restrict grad, AdamW o, float* __restrict master,
                             float* __restrict first, float* __restrict second, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float g = grad[i] * o.grad_scale;
    const float m = o.beta1 * first[i] + o.rest1 * g;
    const float v = o.beta2 * second[i] + o.rest2 * (g * g);
    first[i] = m;
    second[i] = v;
    master[i] = master[i] * o.decay - o.rate * (m / (std::sqrt(v) * o.scale2 + o.epsilon));
  }
}

struct Sgd {
  float grad_scale, learning_rate, mu, weight_decay;
};

PLAIT_INLINE void sgd_body(const float* __restrict grad, Sgd o, float* __restrict master,
                           float* __restrict momentum, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float m = o.mu * momentum[i] + grad[i] * o.grad_scale;
    momentum[i] = m;
    master[i] = master[i] - o.learning_rate * (m + o.weight_decay * master[i]);
  }
}

template <class T>
PLAIT_INLINE void round_body(const float* master, T* weight, int64_t n) {
  for (int64_t i = 0; i < n; i++) weight[i] = from_float<T>(master[i]);
}

PLAIT_KERNEL(adamw_run, adamw_body)
PLAIT_KERNEL(sgd_run, sgd_body)
PLAIT_KERNEL(round_run, round_body)

void check(const char* call, const char* name, const ConstArray& x, const ConstArray& master) {
  PLAIT_CHECK(x.ndim == 1 && x.shape[0] == master.shape[0] && x.contiguous(), call, name, " is ",
              shape_text(x), ", must be contiguous and as long as master ", shape_text(master));
}

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

// base^exponent by squaring: libm's pow differs in the last place from one version to the next.
double power(double base, int64_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent /= 2, base *= base)
    if (exponent % 2) result *= base;
  return result;
}

}  // namespace

void adamw(const ConstArray& grad, float grad_scale, float learning_rate, float beta1, float beta2,
           float epsilon, float weight_decay, int64_t step, const Array& master, const Array& first,
           const Array& second, const Array& weight) {
  PLAIT_CHECK(step >= 1, "adamw", "step is ", step, ", the first is 1");
  PLAIT_CHECK(beta1 >= 0.0f && beta1 < 1.0f && beta2 >= 0.0f && beta2 < 1.0f, "adamw", "beta1 is ",
              beta1, " and beta2 is ", beta2, ", must be in [0, 1)");
  check("adamw", "master", master, master);
  check("adamw", "grad", grad, master);
  check("adamw", "first", first, master);
  check("adamw", "second", second, master);
  check("adamw", "weight", weight, master);
  AdamW o;
  o.grad_scale = grad_scale, o.beta1 = beta1, o.beta2 = beta2, o.epsilon = epsilon;
  o.rest1 = float(1.0 - double(beta1)), o.rest2 = float(1.0 - double(beta2));
  o.decay = float(1.0 - double(learning_rate) * double(weight_decay));
  o.rate = float(double(learning_rate) / (1.0 - power(beta1, step)));
  o.scale2 = float(1.0 / std::sqrt(1.0 - power(beta2, step)));
  const float* g = grad.as<float>();
  float *w = master.as<float>(), *m = first.as<float>(), *v = second.as<float>();
  run(master, weight, "adamw",
      [=](int64_t i, int64_t n) { adamw_run(g + i, o, w + i, m + i, v + i, n); });
}

void sgd(const ConstArray& grad, float grad_scale, float learning_rate, float mu,
         float weight_decay, const Array& master, const Array& momentum, const Array& weight) {
  check("sgd", "master", master, master);
  check("sgd", "grad", grad, master);
  check("sgd", "momentum", momentum, master);
  check("sgd", "weight", weight, master);
  const Sgd o{grad_scale, learning_rate, mu, weight_decay};
  const float* g = grad.as<float>();
  float *w = master.as<float>(), *m = momentum.as<float>();
  run(master, weight, "sgd", [=](int64_t i, int64_t n) { sgd_run(g + i, o, w + i, m + i, n); });
}

}  // namespace plait
