// Checks of attention, and which kernels work: by type and head size alone.
#include "core/expect.hpp"
#include "core/ops.hpp"
#include "cuda/attention_shape.hpp"

namespace plait {
namespace {

AttentionSizes sizes_of(const char* call, const ConstArray& q, const ConstArray& k, const ConstArray& v, const ConstArray& out,
                        const ConstArray& log_sum, bool causal, float scale) {
  expect_ndim(call, "q", q, 4);
  expect_ndim(call, "k", k, 4);
  const int64_t size = q.shape[3];
  const AttentionSizes n = {q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], int(size), causal, scale};
  expect_shape(call, "k", k, {n.samples, n.keys, n.groups, size});
  expect_shape(call, "v", v, {n.samples, n.keys, n.groups, size});
  expect_shape(call, "out", out, {n.samples, n.queries, n.heads, size});
  expect_array(call, "log_sum", log_sum, DType::float32, {n.samples, n.heads, n.queries});
  PLAIT_CHECK(n.groups > 0 ? n.heads % n.groups == 0 : n.heads == 0, call, n.heads, " heads are no multiple of ", n.groups,
              " key-value heads");
  const char* names[] = {"q", "k", "v", "out"};
  const ConstArray* arrays[] = {&q, &k, &v, &out};
  for (int i = 0; i < 4; i++) {
    expect_dtype(call, names[i], *arrays[i], q.dtype);
    expect_unit_last(call, names[i], *arrays[i]);
  }
  return n;
}

bool on_tensor_cores(const ConstArray& q) {
  return q.dtype == DType::bfloat16 && q.shape[3] <= LARGEST_TILED_HEAD;
}

}  // namespace

void attention_forward(const ConstArray& q, const ConstArray& k, const ConstArray& v, bool causal, float scale,
                       const Array& out, const Array& log_sum) {
  const char* call = "attention_forward";
  const AttentionSizes n = sizes_of(call, q, k, v, out, log_sum, causal, scale);
  expect_float(call, "q", q);
  AttentionArrays x;
  x.q = q, x.k = k, x.v = v;
  on_tensor_cores(q) ? attention_forward_tiles(n, x, out, log_sum) : attention_forward_plain(n, x, out, log_sum);
}

void attention_backward(const ConstArray& grad, const ConstArray& q, const ConstArray& k, const ConstArray& v,
                        const ConstArray& out, const ConstArray& log_sum, bool causal, float scale, const Array& grad_q,
                        const Array& grad_k, const Array& grad_v) {
  const char* call = "attention_backward";
  const AttentionSizes n = sizes_of(call, q, k, v, out, log_sum, causal, scale);
  sizes_of(call, grad_q, grad_k, grad_v, grad, log_sum, causal, scale);
  expect_float(call, "q", q);
  expect_dtype(call, "grad", grad, q.dtype);
  expect_shape(call, "grad", grad, {n.samples, n.queries, n.heads, n.size});
  expect_shape(call, "grad_k", grad_k, {n.samples, n.keys, n.groups, n.size});
  const AttentionArrays x = {q, k, v, out, log_sum, grad, grad_q, grad_k, grad_v};
  on_tensor_cores(q) ? attention_backward_tiles(n, x) : attention_backward_plain(n, x);
}

}  // namespace plait
