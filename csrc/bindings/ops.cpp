// The module: one m.def per op, no logic; the GIL is released, the rounding mode is the default.
#include "core/ops.hpp"

#include "bindings/array_caster.hpp"
#include "bindings/peer.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace py = pybind11;
using namespace plait;

namespace {
struct Rounding {
  Rounding() { reset_rounding(); }
};
}  // namespace

PYBIND11_MODULE(_cpu, m) {
  bfloat16_number() = py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")).num();
  py::call_guard<py::gil_scoped_release, Rounding> nogil;

  m.def("set_threads", &set_threads, nogil);
  m.def("threads", &threads);
  m.def("isa", [] { return name_of(active_isa()); });
  m.def("set_isa", [](const std::string& name) {
    for (int i = 0; i <= int(Isa::amx_bf16_emulated); i++)
      if (name == name_of(Isa(i))) return set_isa(Isa(i));
    fail("set_isa", "unknown instruction path ", name);
  });

  // matmul
  m.def("matmul", &matmul, nogil);
  m.def("matmul_backward_weight", &matmul_backward_weight, nogil);

  // sums and copies
  m.def("add", &add, nogil);
  m.def("tree_sum", &tree_sum, nogil);
  m.def("sum_rows", &sum_rows, nogil);
  m.def("convert", &convert, nogil);
  m.def("exact_sum", &exact_sum, nogil);
  m.def("exact_value", &exact_value, nogil);
  m.def("fingerprint", &fingerprint, nogil);
  m.def("weighted_bits", &weighted_bits, nogil);
  m.attr("LIMBS") = LIMBS;

  // randomness
  m.def("random_normal", &random_normal, nogil);
  m.def("dropout", &dropout, nogil);

  // norms
  m.def("layer_norm_forward", &layer_norm_forward, nogil);
  m.def("layer_norm_backward", &layer_norm_backward, nogil);
  m.def("layer_norm_backward_weight", &layer_norm_backward_weight, nogil);
  m.def("rms_norm_forward", &rms_norm_forward, nogil);
  m.def("rms_norm_backward", &rms_norm_backward, nogil);
  m.def("rms_norm_backward_weight", &rms_norm_backward_weight, nogil);

  // activations
  m.def("gelu_forward", &gelu_forward, nogil);
  m.def("gelu_backward", &gelu_backward, nogil);
  m.def("relu_forward", &relu_forward, nogil);
  m.def("relu_backward", &relu_backward, nogil);
  m.def("swiglu_forward", &swiglu_forward, nogil);
  m.def("swiglu_backward", &swiglu_backward, nogil);
  m.def("rope", &rope, nogil);

  // attention
  m.def("attention_forward", &attention_forward, nogil);
  m.def("attention_backward", &attention_backward, nogil);

  // embedding
  m.def("embedding_forward", &embedding_forward, nogil);
  m.def("embedding_backward", &embedding_backward, nogil);

  // cross-entropy
  m.def("cross_entropy_statistics", &cross_entropy_statistics, nogil);
  m.def("cross_entropy_merge", &cross_entropy_merge, nogil);
  m.def("cross_entropy_loss", &cross_entropy_loss, nogil);
  m.def("cross_entropy_backward", &cross_entropy_backward, nogil);

  // convolution
  m.def("conv2d_forward", &conv2d_forward, nogil);
  m.def("conv2d_backward", &conv2d_backward, nogil);
  m.def("conv2d_backward_weight", &conv2d_backward_weight, nogil);
  m.def("batch_norm_forward", &batch_norm_forward, nogil);
  m.def("batch_norm_backward", &batch_norm_backward, nogil);
  m.def("batch_norm_backward_weight", &batch_norm_backward_weight, nogil);
  m.def("max_pool_forward", &max_pool_forward, nogil);
  m.def("max_pool_backward", &max_pool_backward, nogil);
  m.def("mean_pool_forward", &mean_pool_forward, nogil);
  m.def("mean_pool_backward", &mean_pool_backward, nogil);

  // optimizers
  m.def("adamw", &adamw, nogil);
  m.def("sgd", &sgd, nogil);

  // memory, and collectives of a node
  bind_memory(m);
  bind_peer(m);
}
