// GELU, ReLU and SwiGLU: one float function each, sixteen lanes at a time, over strided arrays.
#include "core/ops.hpp"
#include "cpu/math.hpp"
#include "cpu/runs.hpp"
#include "cpu/vec.hpp"

namespace plait {
namespace {

// GELU(x) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = sigmoid(2u).
constexpr float GELU_1 = 1.5957691216057308f, GELU_3 = 0.07135481627260025f;  // 2u = GELU_1 x + GELU_3 x^3

struct Gelu {
  static PLAIT_INLINE float forward(float x) {
    const float twice_u = x * math::fma(GELU_3, x * x, GELU_1);
    return x / (1.0f + math::exp(-twice_u));
  }
  // The derivative is sigmoid(2u) + x sigmoid(2u) sigmoid(-2u) (2u)'; from |x| = 30 on it is 0 or 1.
  static PLAIT_INLINE float backward(float grad, float x) {
    const float low = x < -30.0f ? -30.0f : x;
    const float y = low > 30.0f ? 30.0f : low;
    const float square = y * y;
    const math::Sigmoid s = math::sigmoid(y * math::fma(GELU_3, square, GELU_1));
    const float slope = math::fma(3.0f * GELU_3, square, GELU_1);
    return grad * math::fma(y * s.value * s.complement, slope, s.value);
  }
};

// NaN passes through both.
struct Relu {
  static PLAIT_INLINE float forward(float x) { return x <= 0.0f ? 0.0f : x; }
  static PLAIT_INLINE float backward(float grad, float out) { return out == 0.0f ? 0.0f : grad; }
};

template <class F, class T>
PLAIT_INLINE void forward_body(F, const T* x, T* out, int64_t n) {
  for (int64_t i = 0; i < n; i += LANES) {
    Lanes a = load(x + i, n - i);
    for (int j = 0; j < LANES; j++) a[j] = F::forward(a[j]);
    store(out + i, a, n - i);
  }
}
PLAIT_KERNEL(forward_run, forward_body)

template <class F, class T>
PLAIT_INLINE void backward_body(F, const T* grad, const T* x, T* grad_x, int64_t n) {
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes g = load(grad + i, n - i), a = load(x + i, n - i);
    Lanes r;
    for (int j = 0; j < LANES; j++) r[j] = F::backward(g[j], a[j]);
    store(grad_x + i, r, n - i);
  }
}
PLAIT_KERNEL(backward_run, backward_body)

template <class F>
void forward(const char* call, const ConstArray& x, const Array& out) {
  const Runs<2> runs(call, {&x, &out});
  PLAIT_FLOATS(x.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    runs.parallel([x = x.as<T>(), out = out.as<T>()](const auto& p) {
      forward_run(F{}, x + p.offset[0], out + p.offset[1], p.length);
    });
  });
}

template <class F>
void backward(const char* call, const ConstArray& grad, const ConstArray& x, const Array& grad_x) {
  const Runs<3> runs(call, {&grad, &x, &grad_x});
  PLAIT_FLOATS(x.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    runs.parallel([grad = grad.as<T>(), x = x.as<T>(), grad_x = grad_x.as<T>()](const auto& p) {
      backward_run(F{}, grad + p.offset[0], x + p.offset[1], grad_x + p.offset[2], p.length);
    });
  });
}

template <class T>
PLAIT_INLINE void swiglu_forward_body(const T* gate, const T* up, T* out, int64_t n) {
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes a = load(gate + i, n - i), b = load(up + i, n - i);
    Lanes r;
    for (int j = 0; j < LANES; j++) r[j] = a[j] / (1.0f + math::exp(-a[j])) * b[j];
    store(out + i, r, n - i);
  }
}
PLAIT_KERNEL(swiglu_forward_run, swiglu_forward_body)

// silu'(x) = sigmoid(x) (1 + x sigmoid(-x))
template <class T>
PLAIT_INLINE void swiglu_backward_body(const T* grad, const T* gate, const T* up, T* grad_gate, T* grad_up,
                                       int64_t n) {
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes g = load(grad + i, n - i), a = load(gate + i, n - i), b = load(up + i, n - i);
    Lanes to_gate, to_up;
    for (int j = 0; j < LANES; j++) {
      const math::Sigmoid s = math::sigmoid(a[j]);
      to_gate[j] = g[j] * b[j] * (s.value * math::fma(a[j], s.complement, 1.0f));
      to_up[j] = g[j] * (a[j] * s.value);
    }
    store(grad_gate + i, to_gate, n - i);
    store(grad_up + i, to_up, n - i);
  }
}
PLAIT_KERNEL(swiglu_backward_run, swiglu_backward_body)

}  // namespace

void gelu_forward(const ConstArray& x, const Array& out) { forward<Gelu>("gelu_forward", x, out); }
void gelu_backward(const ConstArray& grad, const ConstArray& x, const Array& grad_x) {
  backward<Gelu>("gelu_backward", grad, x, grad_x);
}
void relu_forward(const ConstArray& x, const Array& out) { forward<Relu>("relu_forward", x, out); }
void relu_backward(const ConstArray& grad, const ConstArray& out, const Array& grad_x) {
  backward<Relu>("relu_backward", grad, out, grad_x);
}

void swiglu_forward(const ConstArray& gate, const ConstArray& up, const Array& out) {
  const Runs<3> runs("swiglu_forward", {&gate, &up, &out});
  PLAIT_FLOATS(gate.dtype, "swiglu_forward", [&](auto zero) {
    using T = decltype(zero);
    runs.parallel([gate = gate.as<T>(), up = up.as<T>(), out = out.as<T>()](const auto& p) {
      swiglu_forward_run(gate + p.offset[0], up + p.offset[1], out + p.offset[2], p.length);
    });
  });
}

void swiglu_backward(const ConstArray& grad, const ConstArray& gate, const ConstArray& up,
                     const Array& grad_gate, const Array& grad_up) {
  const Runs<5> runs("swiglu_backward", {&grad, &gate, &up, &grad_gate, &grad_up});
  PLAIT_FLOATS(gate.dtype, "swiglu_backward", [&](auto zero) {
    using T = decltype(zero);
    runs.parallel([grad = grad.as<T>(), gate = gate.as<T>(), up = up.as<T>(), to_gate = grad_gate.as<T>(),
                   to_up = grad_up.as<T>()](const auto& p) {
      swiglu_backward_run(grad + p.offset[0], gate + p.offset[1], up + p.offset[2], to_gate + p.offset[3],
                          to_up + p.offset[4], p.length);
    });
  });
}

}  // namespace plait
