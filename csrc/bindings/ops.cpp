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
  m.def("add", &add, nogil);
  m.def("tree_sum", &tree_sum, nogil);
  m.def("sum_rows", &sum_rows, nogil);
  m.def("convert", &convert, nogil);
  m.def("exact_sum", &exact_sum, nogil);
  m.def("exact_value", &exact_value, nogil);
  m.attr("LIMBS") = LIMBS;

  // randomness
  m.def("random_normal", &random_normal, nogil);
  m.def("dropout", &dropout, nogil);

  // norms

  // activations

  // attention

  // embedding

  // cross-entropy

  // convolution

  // optimizers
  m.def("adamw", &adamw, nogil);
  m.def("sgd", &sgd, nogil);
}
