// GELU, ReLU and SwiGLU as functions of one float or, on the CPU, of a vector of them (then include cpu/math.hpp first).
#pragma once
#include "core/math.hpp"

namespace plait {

// GELU(x) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = sigmoid(2u).
constexpr float GELU_1 = 1.5957691216057308f,
                GELU_3 = 0.07135481627260025f;  // 2u = GELU_1 x + GELU_3 x^3

struct Gelu {
  template <class V>
  static PLAIT_INLINE V forward(V x) {
    const V twice_u = x * fma(all<V>(GELU_3), x * x, all<V>(GELU_1));
    return x / (1.0f + math::exp(-twice_u));
  }
  // The derivative is sigmoid(2u) + x sigmoid(2u) sigmoid(-2u) (2u)'; from |x| = 30 on it is 0
  // or 1.
  template <class V>
  static PLAIT_INLINE V backward(V grad, V x) {
    const V low = x < -30.0f ? all<V>(-30.0f) : x;
    const V y = low > 30.0f ? all<V>(30.0f) : low;
    const V square = y * y;
    const math::Sigmoid<V> s = math::sigmoid(y * fma(all<V>(GELU_3), square, all<V>(GELU_1)));
    const V slope = fma(all<V>(3.0f * GELU_3), square, all<V>(GELU_1));
    return grad * fma(y * s.value * s.complement, slope, s.value);
  }
};

// NaN passes through both.
struct Relu {
  template <class V>
  static PLAIT_INLINE V forward(V x) {
    return x <= 0.0f ? all<V>(0.0f) : x;
  }
  template <class V>
  static PLAIT_INLINE V backward(V grad, V out) {
    return out == 0.0f ? all<V>(0.0f) : grad;
  }
};

// silu'(x) = sigmoid(x) (1 + x sigmoid(-x))
struct Swiglu {
  template <class V>
  static PLAIT_INLINE V forward(V gate, V up) {
    return gate / (1.0f + math::exp(-gate)) * up;
  }
  template <class V>
  static PLAIT_INLINE void backward(V grad, V gate, V up, V* grad_gate, V* grad_up) {
    const math::Sigmoid<V> s = math::sigmoid(gate);
    *grad_gate = grad * up * (s.value * fma(gate, s.complement, all<V>(1.0f)));
    *grad_up = grad * (gate * s.value);
  }
};

}  // namespace plait
