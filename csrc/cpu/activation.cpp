// GELU, ReLU and SwiGLU: one function on vectors each (core/activation.hpp), over strided arrays.
#include "core/ops.hpp"
#include "cpu/math.hpp"
#include "core/activation.hpp"
#include "cpu/runs.hpp"
#include "cpu/vec.hpp"

namespace plait {
namespace {

template <class V, class F, class T>
PLAIT_INLINE void forward_body(F, const T* x, T* out, int64_t n) {
  int64_t i = 0;
  for (; i + WIDTH<V> <= n; i += WIDTH<V>) store(out + i, F::forward(load<V>(x + i)));
  if (i < n) store(out + i, F::forward(load<V>(x + i, n - i)), n - i);
}
PLAIT_VECTOR_KERNEL(forward_run, forward_body)

template <class V, class F, class T>
PLAIT_INLINE void backward_body(F, const T* grad, const T* x, T* grad_x, int64_t n) {
  int64_t i = 0;
  for (; i + WIDTH<V> <= n; i += WIDTH<V>)
    store(grad_x + i, F::backward(load<V>(grad + i), load<V>(x + i)));
  if (i < n) store(grad_x + i, F::backward(load<V>(grad + i, n - i), load<V>(x + i, n - i)), n - i);
}
PLAIT_VECTOR_KERNEL(backward_run, backward_body)

template <class F>
void forward(const char* call, const ConstArray& x, const Array& out) {
  const Runs<2> runs(call, {&x, &out});
  PLAIT_FLOATS(x.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    parallel_runs(runs, [x = x.as<T>(), out = out.as<T>()](const auto& p) {
      forward_run(F{}, x + p.offset[0], out + p.offset[1], p.length);
    });
  });
}

template <class F>
void backward(const char* call, const ConstArray& grad, const ConstArray& x, const Array& grad_x) {
  const Runs<3> runs(call, {&grad, &x, &grad_x});
  PLAIT_FLOATS(x.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    parallel_runs(runs, [grad = grad.as<T>(), x = x.as<T>(), grad_x = grad_x.as<T>()](const auto& p) {
      backward_run(F{}, grad + p.offset[0], x + p.offset[1], grad_x + p.offset[2], p.length);
    });
  });
}

template <class V, class T>
PLAIT_INLINE void swiglu_forward_body(const T* gate, const T* up, T* out, int64_t n) {
  for (int64_t i = 0; i < n; i += WIDTH<V>) {
    const V a = load<V>(gate + i, n - i), b = load<V>(up + i, n - i);
    store(out + i, Swiglu::forward(a, b), n - i);
  }
}
PLAIT_VECTOR_KERNEL(swiglu_forward_run, swiglu_forward_body)

template <class V, class T>
PLAIT_INLINE void swiglu_backward_body(const T* grad, const T* gate, const T* up, T* grad_gate,
                                       T* grad_up, int64_t n) {
  for (int64_t i = 0; i < n; i += WIDTH<V>) {
    const V g = load<V>(grad + i, n - i), a = load<V>(gate + i, n - i), b = load<V>(up + i, n - i);
    V to_gate, to_up;
    Swiglu::backward(g, a, b, &to_gate, &to_up);
    store(grad_gate + i, to_gate, n - i);
    store(grad_up + i, to_up, n - i);
  }
}
PLAIT_VECTOR_KERNEL(swiglu_backward_run, swiglu_backward_body)

}  // namespace

void gelu_forward(const ConstArray& x, const Array& out) {
  forward<Gelu>("gelu_forward", x, out);
}
void gelu_backward(const ConstArray& grad, const ConstArray& x, const Array& grad_x) {
  backward<Gelu>("gelu_backward", grad, x, grad_x);
}
void relu_forward(const ConstArray& x, const Array& out) {
  forward<Relu>("relu_forward", x, out);
}
void relu_backward(const ConstArray& grad, const ConstArray& out, const Array& grad_x) {
  backward<Relu>("relu_backward", grad, out, grad_x);
}

void swiglu_forward(const ConstArray& gate, const ConstArray& up, const Array& out) {
  const Runs<3> runs("swiglu_forward", {&gate, &up, &out});
  PLAIT_FLOATS(gate.dtype, "swiglu_forward", [&](auto zero) {
    using T = decltype(zero);
    parallel_runs(runs, [gate = gate.as<T>(), up = up.as<T>(), out = out.as<T>()](const auto& p) {
      swiglu_forward_run(gate + p.offset[0], up + p.offset[1], out + p.offset[2], p.length);
    });
  });
}

void swiglu_backward(const ConstArray& grad, const ConstArray& gate, const ConstArray& up,
                     const Array& grad_gate, const Array& grad_up) {
  const Runs<5> runs("swiglu_backward", {&grad, &gate, &up, &grad_gate, &grad_up});
  PLAIT_FLOATS(gate.dtype, "swiglu_backward", [&](auto zero) {
    using T = decltype(zero);
    parallel_runs(runs, [grad = grad.as<T>(), gate = gate.as<T>(), up = up.as<T>(),
                   to_gate = grad_gate.as<T>(), to_up = grad_up.as<T>()](const auto& p) {
      swiglu_backward_run(grad + p.offset[0], gate + p.offset[1], up + p.offset[2],
                          to_gate + p.offset[3], to_up + p.offset[4], p.length);
    });
  });
}

}  // namespace plait
