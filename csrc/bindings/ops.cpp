// The module: one m.def per op, no logic; the GIL is released.
#include "core/ops.hpp"

#include "bindings/array_caster.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace py = pybind11;
using namespace plait;

PYBIND11_MODULE(_cpu, m) {
  bfloat16_number() = py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")).num();
  py::call_guard<py::gil_scoped_release> nogil;

  m.def("set_threads", &set_threads, nogil);
  m.def("threads", &threads);
  m.def("isa", [] { return name_of(active_isa()); });
  m.def("set_isa", [](const std::string& name) {
    for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
      if (name == name_of(isa)) return set_isa(isa);
    fail("set_isa", "unknown instruction path ", name);
  });

  // matmul
  m.def("matmul", &matmul, nogil);

  // sums and copies

  // randomness

  // norms

  // activations

  // attention

  // embedding

  // cross-entropy

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
}
