// One line per op, no logic; the GIL is released. Errors of a device get the shapes that the op was called with.
#include "bindings/ops.hpp"

#include "bindings/array_caster.hpp"
#include "core/ops.hpp"

namespace py = pybind11;

namespace plait {
namespace {

void describe(std::ostringstream& text, const ConstArray& x) { text << " " << shape_text(x); }
void describe(std::ostringstream& text, const std::vector<ConstArray>& all) {
  for (const ConstArray& x : all) describe(text, x);
}
void describe(std::ostringstream& text, const std::optional<ConstArray>& x) {
  if (x) describe(text, *x);
}
template <class T>
void describe(std::ostringstream&, const T&) {}

template <class R, class... A, class... Names>
void op(py::module_& m, const char* name, R (*function)(A...), const Names&... names) {
  const auto call = [=](A... arguments) -> R {
    const py::gil_scoped_release free;
    prepare_thread();
    try {
      return function(arguments...);
    } catch (const DeviceError& error) {
      std::ostringstream text;
      text << name << ": " << error.what() << "; called with";
      (describe(text, arguments), ...);
      throw DeviceError(text.str());
    }
  };
  m.def(name, call, names...);
}

}  // namespace

void bind_ops(py::module_& m) {
  bfloat16_number() = py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")).num();
  // matmul
  op(
      m, "matmul",
      +[](const ConstArray& a, const ConstArray& b, bool transpose_a, bool transpose_b, const std::vector<int64_t>& leaves,
          bool accumulate, int64_t period, const std::optional<ConstArray>& bias, const Array& out,
          const std::optional<Array>& gelu, const std::optional<ConstArray>& gelu_backward,
          const std::optional<ConstArray>& residual) {
        matmul(a, b, transpose_a, transpose_b, leaves, accumulate, period, bias, out, {gelu, gelu_backward, residual});
      },
      py::arg("a"), py::arg("b"), py::arg("transpose_a"), py::arg("transpose_b"), py::arg("leaves"), py::arg("accumulate"),
      py::arg("period"), py::arg("bias"), py::arg("out"), py::kw_only(), py::arg("gelu") = py::none(),
      py::arg("gelu_backward") = py::none(), py::arg("residual") = py::none());
  op(m, "matmul_backward_weight", &matmul_backward_weight);

  // sums and copies
  op(m, "add", &add);
  op(m, "tree_sum", &tree_sum);
  op(m, "sum_rows", &sum_rows);
  op(m, "convert", &convert);
  op(m, "exact_sum", &exact_sum);
  op(m, "exact_value", &exact_value);
  op(m, "fingerprint", &fingerprint);
  op(m, "weighted_bits", &weighted_bits);
  m.attr("LIMBS") = LIMBS;

  // randomness
  op(m, "random_normal", &random_normal);
  op(m, "dropout", &dropout);

  // norms
  op(m, "layer_norm_forward", &layer_norm_forward);
  op(m, "layer_norm_backward", &layer_norm_backward);
  op(m, "layer_norm_backward_weight", &layer_norm_backward_weight);
  op(m, "rms_norm_forward", &rms_norm_forward);
  op(m, "rms_norm_backward", &rms_norm_backward);
  op(m, "rms_norm_backward_weight", &rms_norm_backward_weight);

  // activations
  op(m, "gelu_forward", &gelu_forward);
  op(m, "gelu_backward", &gelu_backward);
  op(m, "relu_forward", &relu_forward);
  op(m, "relu_backward", &relu_backward);
  op(m, "swiglu_forward", &swiglu_forward);
  op(m, "swiglu_backward", &swiglu_backward);
  op(m, "rope", &rope);

  // attention
  op(m, "attention_forward", &attention_forward);
  op(m, "attention_backward", &attention_backward);

  // embedding
  op(m, "embedding_forward", &embedding_forward);
  op(m, "embedding_backward", &embedding_backward);

  // cross-entropy
  op(m, "cross_entropy_statistics", &cross_entropy_statistics);
  op(m, "cross_entropy_merge", &cross_entropy_merge);
  op(m, "cross_entropy_loss", &cross_entropy_loss);
  op(m, "cross_entropy_backward", &cross_entropy_backward);
  op(m, "argmax", &argmax);

  // convolution
  op(m, "conv2d_forward", &conv2d_forward);
  op(m, "conv2d_backward", &conv2d_backward);
  op(m, "conv2d_backward_weight", &conv2d_backward_weight);
  op(m, "batch_norm_forward", &batch_norm_forward);
  op(m, "batch_norm_backward", &batch_norm_backward);
  op(m, "batch_norm_backward_weight", &batch_norm_backward_weight);
  op(m, "add_statistic", &add_statistic);
  op(m, "moving_average", &moving_average);
  op(m, "max_pool_forward", &max_pool_forward);
  op(m, "max_pool_backward", &max_pool_backward);
  op(m, "mean_pool_forward", &mean_pool_forward);
  op(m, "mean_pool_backward", &mean_pool_backward);

  // optimizers
  op(m, "adamw", &adamw);
  op(m, "sgd", &sgd);
}

}  // namespace plait
