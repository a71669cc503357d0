// The wgmma engine by itself, for tests and benchmarks that choose the plan.
#include "bindings/engines.hpp"

#include "bindings/array_caster.hpp"
#include "bindings/ops.hpp"
#include "cuda/matmul_sm90.hpp"

namespace py = pybind11;

namespace plait {

void bind_engines(py::module_& m) {
  // out (m, n), or a stack (slots, m, n) as matmul_backward_weight's; plan (columns, cluster, apart).
  m.def("matmul_wgmma", [](const ConstArray& a, const ConstArray& b, bool transpose_a, bool transpose_b,
                           const std::vector<int64_t>& leaves, const std::vector<int>& merges, int64_t slot, bool accumulate,
                           int64_t period, const std::optional<ConstArray>& bias, const Array& out,
                           const std::optional<std::tuple<int, int, bool>>& plan, const std::optional<Array>& gelu,
                           const std::optional<ConstArray>& gelu_backward, const std::optional<ConstArray>& residual) {
    MatmulProblem p = {};
    p.a = a.as<bfloat16>(), p.b = b.as<bfloat16>();
    p.row_stride_a = a.strides[0], p.row_stride_b = b.strides[0];
    p.transpose_a = transpose_a, p.transpose_b = transpose_b;
    p.m = a.shape[transpose_a], p.n = b.shape[!transpose_b], p.k = a.shape[!transpose_a];
    p.leaves = &leaves, p.merges = &merges, p.slot = slot, p.slots_stride = out.ndim == 3 ? out.strides[0] : 0;
    p.accumulate = accumulate, p.period = period;
    if (bias) p.bias = bias->data, p.bias_dtype = bias->dtype;
    p.out = const_cast<void*>(out.data), p.out_dtype = out.dtype, p.row_stride_out = out.strides[out.ndim - 2];
    p.after = after_of({gelu, gelu_backward, residual}, accumulate, out);
    const py::gil_scoped_release free;
    prepare_thread();
    if (plan)
      matmul_wgmma(p, WgmmaPlan{std::get<0>(*plan), std::get<1>(*plan), std::get<2>(*plan)});
    else
      matmul_wgmma(p);
  }, py::arg("a"), py::arg("b"), py::arg("transpose_a"), py::arg("transpose_b"), py::arg("leaves"), py::arg("merges"),
        py::arg("slot"), py::arg("accumulate"), py::arg("period"), py::arg("bias"), py::arg("out"), py::arg("plan"),
        py::kw_only(), py::arg("gelu") = py::none(), py::arg("gelu_backward") = py::none(), py::arg("residual") = py::none());
  m.def("wgmma_available", &wgmma_available);
  m.def("wgmma_plan", [](int64_t rows, int64_t columns, const std::vector<int64_t>& leaves, bool float32_out, bool accumulate,
                         int multiprocessors) {
    MatmulProblem p = {};
    p.m = rows, p.n = columns, p.k = leaves.back(), p.leaves = &leaves, p.accumulate = accumulate;
    p.out_dtype = float32_out ? DType::float32 : DType::bfloat16;
    const WgmmaPlan plan = wgmma_plan(p, multiprocessors);
    return std::make_tuple(plan.columns, plan.cluster, plan.apart);
  });
}

}  // namespace plait
