// Norms, activations, rope, attention, embedding, cross-entropy.
#include <initializer_list>
#include <optional>

#include "cases.hpp"
#include "core/ops.hpp"
#include "core/tree.hpp"

namespace plait::portable {
namespace {

using Outputs = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;
using Stream = std::optional<Array>;

std::optional<ConstArray> held(const Maybe& x) {
  return x ? std::optional<ConstArray>(*x) : std::nullopt;
}

// residual: of a stream of two, whose first gradient is another one.
Outputs layer_norm(DType dtype, DType weights, int64_t samples, int64_t length, int64_t c,
                   bool residual) {
  const Tensor x = normal(dtype, {samples * length, c}, 1, 3),
               grad = normal(dtype, {samples * length, c}, 2);
  const Tensor weight = normal(weights, {c}, 3), bias = normal(weights, {c}, 4);
  const int64_t rows = samples * length;
  Tensor out = empty(dtype, {rows, c}), mean = empty(F32, {rows}), rstd = empty(F32, {rows}),
         grad_x = empty(dtype, {rows, c}), grad_weight = normal(F32, {c}, 5),
         grad_bias = normal(F32, {c}, 6), stream = empty(dtype, {rows, c});
  const Maybe other = residual ? Maybe(normal(dtype, {rows, c}, 7)) : Maybe();
  layer_norm_forward(x, held(other), weight, bias, 1e-5f, residual ? Stream(stream) : Stream(), out,
                     mean, rstd);
  layer_norm_backward(grad, held(other), residual ? stream : x, weight, mean, rstd, grad_x);
  layer_norm_backward_weight(reshaped(grad, {samples, length, c}),
                             reshaped(x, {samples, length, c}), reshaped(mean, {samples, length}),
                             reshaped(rstd, {samples, length}), true, grad_weight, grad_bias);
  return {out, mean, rstd, grad_x, grad_weight, grad_bias, stream};
}

Outputs rms_norm(DType dtype, DType weights, int64_t samples, int64_t length, int64_t c,
                 bool residual) {
  const Tensor x = normal(dtype, {samples * length, c}, 1, 3),
               grad = normal(dtype, {samples * length, c}, 2);
  const Tensor weight = normal(weights, {c}, 3);
  const int64_t rows = samples * length;
  Tensor out = empty(dtype, {rows, c}), rstd = empty(F32, {rows}), grad_x = empty(dtype, {rows, c}),
         grad_weight = normal(F32, {c}, 5), stream = empty(dtype, {rows, c});
  const Maybe other = residual ? Maybe(normal(dtype, {rows, c}, 7)) : Maybe();
  rms_norm_forward(x, held(other), weight, 1e-5f, residual ? Stream(stream) : Stream(), out, rstd);
  rms_norm_backward(grad, held(other), residual ? stream : x, weight, rstd, grad_x);
  rms_norm_backward_weight(reshaped(grad, {samples, length, c}), reshaped(x, {samples, length, c}),
                           reshaped(rstd, {samples, length}), true, grad_weight);
  return {out, rstd, grad_x, grad_weight, stream};
}

// Some outputs of a call that runs an op and its backward: one case for each op.
void add_parts(Cases& cases,
               std::initializer_list<std::pair<const char*, std::vector<size_t>>> parts,
               DType dtype, const Shape& sizes, const std::string& rest,
               const std::function<Outputs()>& call) {
  for (const auto& [op, which] : parts)
    cases.push_back({named(op, dtype, sizes) + rest, [=, which = which] {
                       const Outputs all = call();
                       Outputs some;
                       for (size_t i : which) some.push_back(all[i]);
                       return some;
                     }});
}

Outputs elementwise(int op, const Tensor& a, const Tensor& b, const Tensor& c, const Shape& shape) {
  Tensor out = empty(a.dtype, shape), other = empty(a.dtype, shape);
  switch (op) {
    case 0:
      gelu_forward(a, out);
      break;
    case 1:
      gelu_backward(a, b, out);
      break;
    case 2:
      relu_forward(a, out);
      break;
    case 3:
      relu_backward(a, b, out);
      break;
    case 4:
      swiglu_forward(a, b, out);
      break;
    default:
      swiglu_backward(a, b, c, out, other);
      return {out, other};
  }
  return {out};
}

// scale: of values and of the gradient.
Outputs attention(DType dtype, const Shape& s, bool causal, int64_t gap, float scale = 1) {
  const int64_t batch = s[0], queries = s[1], keys = s[2], heads = s[3], groups = s[4], size = s[5];
  const Shape q_shape{batch, queries, heads, size}, k_shape{batch, keys, groups, size};
  const Tensor q = normal(dtype, q_shape, 1, 2, gap), k = normal(dtype, k_shape, 2, 2, gap),
               v = normal(dtype, k_shape, 3, scale, gap), grad = normal(dtype, q_shape, 4, scale, gap);
  Tensor out = empty(dtype, q_shape), log_sum = empty(F32, {batch, heads, queries}),
         grad_q = empty(dtype, q_shape), grad_k = empty(dtype, k_shape),
         grad_v = empty(dtype, k_shape);
  attention_forward(q, k, v, causal, 0.3f, out, log_sum);
  attention_backward(grad, q, k, v, out, log_sum, causal, 0.3f, grad_q, grad_k, grad_v);
  return {out, log_sum, grad_q, grad_k, grad_v};
}

Outputs embedding(DType dtype, int64_t count, int64_t channels) {
  const Tensor tokens = integers({count}, 60, 1), weight = normal(dtype, {40, channels}, 2),
               grad = normal(dtype, {count, channels}, 3);
  Tensor out = empty(dtype, {count, channels}), grad_weight = normal(F32, {4, 40, channels}, 4);
  embedding_forward(tokens, weight, 10, out);
  embedding_backward(tokens, grad, 10, leaves_of(count, 5), tree_merges(5), 0, true, {}, grad_weight);
  return {out, grad_weight};
}

Outputs largest(const Tensor& x) {
  Tensor value = empty(F32, {x.shape[0]}), index = empty(DType::int32, {x.shape[0]});
  argmax(x, x.shape[1] - x.shape[1] / 5, value, index);
  return {value, index};
}

Outputs cross_entropy(DType dtype, int64_t rows, int64_t columns) {
  const int64_t vocabulary = 2 * columns - 3;
  const Tensor targets = integers({rows}, int32_t(vocabulary), 1);
  Tensor parts = empty(F32, {3, 2, rows}), target = zeros(F32, {rows}),
         merged = empty(F32, {2, rows}), losses = empty(F32, {rows}),
         grad = empty(dtype, {rows, columns});
  for (int64_t i = 0; i < 3; i++) {  // shards from column 0, `columns` and 0 again
    const Tensor logits = normal(dtype, {rows, columns}, 2 + uint64_t(i), 4);
    Tensor peak = empty(F32, {rows}), sum = empty(F32, {rows});
    cross_entropy_statistics(logits, targets, i % 2 * columns, vocabulary, peak, sum, target);
    for (int64_t r = 0; r < rows; r++) {
      float* to = static_cast<Array&>(parts).as<float>() + 2 * i * rows + r;
      to[0] = static_cast<const float*>(peak.data)[r],
      to[rows] = static_cast<const float*>(sum.data)[r];
    }
  }
  cross_entropy_merge(parts, tree_merges(3), merged);
  Tensor peak = reshaped(merged, {2 * rows}), sum = peak;
  peak.shape[0] = sum.shape[0] = rows;
  sum.data = static_cast<const float*>(merged.data) + rows;
  cross_entropy_loss(peak, sum, target, targets, losses);
  cross_entropy_backward(normal(dtype, {rows, columns}, 3, 4), targets, peak, sum, columns,
                         vocabulary, 0.01f, grad);
  return {parts, target, merged, losses, grad};
}

}  // namespace

void add_norms(Cases& cases) {
  const std::pair<DType, DType> types[] = {{F32, F32}, {BF16, BF16}, {BF16, F32}};
  for (const auto& [dtype, weights] : types)
    for (const Shape& s : {Shape{2, 3, 1}, {3, 29, 130}, {5, 41, 301}}) {
      const std::string rest = std::string(" weights ") + name_of(weights);
      add_parts(cases,
                {{"layer_norm_forward", {0, 1, 2}},
                 {"layer_norm_backward", {3}},
                 {"layer_norm_backward_weight", {4, 5}}},
                dtype, s, rest,
                [=, x = dtype, w = weights] { return layer_norm(x, w, s[0], s[1], s[2], false); });
      add_parts(cases,
                {{"rms_norm_forward", {0, 1}},
                 {"rms_norm_backward", {2}},
                 {"rms_norm_backward_weight", {3}}},
                dtype, s, rest,
                [=, x = dtype, w = weights] { return rms_norm(x, w, s[0], s[1], s[2], false); });
      add_parts(cases, {{"layer_norm_forward", {0, 1, 2, 6}}, {"layer_norm_backward", {3}}}, dtype,
                s, rest + " residual",
                [=, x = dtype, w = weights] { return layer_norm(x, w, s[0], s[1], s[2], true); });
      add_parts(cases, {{"rms_norm_forward", {0, 1, 4}}, {"rms_norm_backward", {2}}}, dtype, s,
                rest + " residual",
                [=, x = dtype, w = weights] { return rms_norm(x, w, s[0], s[1], s[2], true); });
    }
}

void add_activations(Cases& cases) {
  static const char* ops[] = {"gelu_forward",  "gelu_backward",  "relu_forward",
                              "relu_backward", "swiglu_forward", "swiglu_backward"};
  for (int op = 0; op < 6; op++)
    for (DType dtype : {F32, BF16})
      for (const Shape& s : {Shape{1}, {19, 37}, {5, 17, 301}}) {
        cases.push_back({named(ops[op], dtype, s), [=] {
                           return elementwise(op, normal(dtype, s, 1, 4, 3),
                                              normal(dtype, s, 2, 4, 3), normal(dtype, s, 3), s);
                         }});
        cases.push_back({named(ops[op], dtype, s) + " of any bits", [=] {
                           return elementwise(op, any_bits(dtype, s, 1), any_bits(dtype, s, 2),
                                              any_bits(dtype, s, 3), s);
                         }});
      }
  for (DType dtype : {F32, BF16})
    for (bool inverse : {false, true})
      for (const Shape& s : {Shape{1, 1, 1, 2}, {2, 37, 3, 26}, {3, 129, 4, 64}})
        cases.push_back({named("rope", dtype, s) + (inverse ? " inverse" : ""), [=] {
                           Tensor out = empty(dtype, s);
                           rope(normal(dtype, s, 1, 1, 2), 10000, 100003, inverse, out);
                           return Outputs{out};
                         }});
}

void add_attention(Cases& cases) {
  for (DType dtype : {F32, BF16})
    for (bool causal : {false, true})
      for (const Shape& s :
           {Shape{1, 1, 1, 1, 1, 1}, {2, 77, 77, 4, 2, 20}, {1, 65, 131, 3, 3, 33}})
        add_parts(cases, {{"attention_forward", {0, 1}}, {"attention_backward", {2, 3, 4}}}, dtype,
                  s, causal ? " causal" : "",
                  [=] { return attention(dtype, s, causal, s[5] % 4); });
  const Shape s{1, 67, 67, 1, 1, 40};
  for (DType dtype : {F32, BF16})
    add_parts(cases, {{"attention_forward", {0, 1}}, {"attention_backward", {2, 3, 4}}}, dtype, s,
              " denormal", [=] { return attention(dtype, s, true, 0, 0x1p-124f); });
}

void add_vocabulary(Cases& cases) {
  for (DType dtype : {F32, BF16}) {
    for (const Shape& s : {Shape{7, 1}, {400, 33}, {301, 130}})
      add_parts(cases, {{"embedding_forward", {0}}, {"embedding_backward", {1}}}, dtype, s, "",
                [=] { return embedding(dtype, s[0], s[1]); });
    for (const Shape& s : {Shape{1, 5}, {40, 160}, {67, 1003}})
      add_parts(cases,
                {{"cross_entropy_statistics", {0, 1}},
                 {"cross_entropy_merge", {2}},
                 {"cross_entropy_loss", {3}},
                 {"cross_entropy_backward", {4}}},
                dtype, s, "", [=] { return cross_entropy(dtype, s[0], s[1]); });
    for (const Shape& s : {Shape{1, 5}, {40, 160}, {67, 1003}}) {
      cases.push_back(
          {named("argmax", dtype, s), [=] { return largest(normal(dtype, s, 1, 4, 3)); }});
      cases.push_back({named("argmax", dtype, s) + " of any bits",
                       [=] { return largest(any_bits(dtype, s, 1)); }});
    }
  }
}

}  // namespace plait::portable
