// The optimizers' steps of one element, every operation rounded to float32, and their settings, computed in double once
// per call. Both backends run exactly these.
#pragma once
#include <cmath>

#include "core/array.hpp"
#include "core/inline.hpp"

namespace plait {

struct AdamW {
  float grad_scale, beta1, beta2, rest1, rest2;  // rest = 1 - beta
  float decay;                                   // 1 - learning_rate * weight_decay
  float rate;                                    // learning_rate / (1 - beta1^step)
  float scale2;                                  // 1 / sqrt(1 - beta2^step)
  float epsilon;
};

PLAIT_INLINE void adamw_step(const AdamW& o, float grad, float& master, float& first, float& second) {
  const float g = grad * o.grad_scale;
  const float m = o.beta1 * first + o.rest1 * g;
  const float v = o.beta2 * second + o.rest2 * (g * g);
  first = m;
  second = v;
  master = master * o.decay - o.rate * (m / (std::sqrt(v) * o.scale2 + o.epsilon));
}

struct Sgd {
  float grad_scale, learning_rate, mu, weight_decay;
};

PLAIT_INLINE void sgd_step(const Sgd& o, float grad, float& master, float& momentum) {
  const float m = o.mu * momentum + grad * o.grad_scale;
  momentum = m;
  master = master - o.learning_rate * (m + o.weight_decay * master);
}

// base^exponent by squaring: libm's pow differs in the last place from one version to the next.
inline double power(double base, int64_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent /= 2, base *= base)
    if (exponent % 2) result *= base;
  return result;
}

inline AdamW adamw_settings(float grad_scale, float learning_rate, float beta1, float beta2, float epsilon, float weight_decay,
                            int64_t step) {
  PLAIT_CHECK(step >= 1, "adamw", "step is ", step, ", the first is 1");
  PLAIT_CHECK(beta1 >= 0.0f && beta1 < 1.0f && beta2 >= 0.0f && beta2 < 1.0f, "adamw", "beta1 is ", beta1, " and beta2 is ",
              beta2, ", must be in [0, 1)");
  AdamW o;
  o.grad_scale = grad_scale, o.beta1 = beta1, o.beta2 = beta2, o.epsilon = epsilon;
  o.rest1 = float(1.0 - double(beta1)), o.rest2 = float(1.0 - double(beta2));
  o.decay = float(1.0 - double(learning_rate) * double(weight_decay));
  o.rate = float(double(learning_rate) / (1.0 - power(beta1, step)));
  o.scale2 = float(1.0 / std::sqrt(1.0 - power(beta2, step)));
  return o;
}

inline void check_shard(const char* call, const char* name, const ConstArray& x, const ConstArray& master) {
  PLAIT_CHECK(x.ndim == 1 && x.shape[0] == master.shape[0] && x.contiguous(), call, name, " is ", shape_text(x),
              ", must be contiguous and as long as master ", shape_text(master));
}

}  // namespace plait
