// GELU, ReLU and SwiGLU, the same bits as cpu/activation.cpp: one function of floats each.
#include "core/activation.hpp"

#include "core/ops.hpp"
#include "cuda/elementwise.cuh"

namespace plait {
namespace {

template <class F>
struct Forward {
  __device__ void apply(const float (&x)[1], float (&out)[1]) const { out[0] = F::forward(x[0]); }
};
template <class F>
struct Backward {
  __device__ void apply(const float (&x)[2], float (&out)[1]) const {
    out[0] = F::backward(x[0], x[1]);
  }
};
struct SwigluForward {
  __device__ void apply(const float (&x)[2], float (&out)[1]) const {
    out[0] = Swiglu::forward(x[0], x[1]);
  }
};
struct SwigluBackward {
  __device__ void apply(const float (&x)[3], float (&out)[2]) const {
    Swiglu::backward(x[0], x[1], x[2], &out[0], &out[1]);
  }
};

template <class F, int INPUTS, int N>
void run(const At& at, const ConstArray* const (&arrays)[N]) {
  PLAIT_FLOATS(arrays[0]->dtype, at.kernel, [&](auto zero) {
    using T = decltype(zero);
    elementwise<T, T, INPUTS>(at, arrays, F{});
  });
}

}  // namespace

void gelu_forward(const ConstArray& x, const Array& out) {
  run<Forward<Gelu>, 1>(PLAIT_AT("gelu_forward"), {&x, &out});
}
void gelu_backward(const ConstArray& grad, const ConstArray& x, const Array& grad_x) {
  run<Backward<Gelu>, 2>(PLAIT_AT("gelu_backward"), {&grad, &x, &grad_x});
}
void relu_forward(const ConstArray& x, const Array& out) {
  run<Forward<Relu>, 1>(PLAIT_AT("relu_forward"), {&x, &out});
}
void relu_backward(const ConstArray& grad, const ConstArray& out, const Array& grad_x) {
  run<Backward<Relu>, 2>(PLAIT_AT("relu_backward"), {&grad, &out, &grad_x});
}
void swiglu_forward(const ConstArray& gate, const ConstArray& up, const Array& out) {
  run<SwigluForward, 2>(PLAIT_AT("swiglu_forward"), {&gate, &up, &out});
}
void swiglu_backward(const ConstArray& grad, const ConstArray& gate, const ConstArray& up,
                     const Array& grad_gate, const Array& grad_up) {
  run<SwigluBackward, 3>(PLAIT_AT("swiglu_backward"), {&grad, &gate, &up, &grad_gate, &grad_up});
}

}  // namespace plait
