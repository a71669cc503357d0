// Collectives of a node's ranks on their GPUs: windows over arenas of device memory, and calls prepared for them.
#include "peer/device_window.hpp"

#include <memory>

#include "bindings/array_caster.hpp"
#include "bindings/ops.hpp"

namespace py = pybind11;

namespace plait {
namespace {

// A call with the arrays that it needs.
struct DevicePrepared {
  DeviceCall call;
  std::vector<py::object> arrays;
};

Reduce reduce_from(const std::string& op) {
  PLAIT_CHECK(op == "sum" || op == "max" || op == "min", "device window", "no reduction ", op);
  return op == "sum" ? Reduce::sum : op == "max" ? Reduce::max : Reduce::min;
}

using Bounds = std::vector<int64_t>;

// norm: (weight, bias or None, epsilon, normed, mean or None, rstd)
DevicePrepared reduction(const DeviceWindow& window, const py::object& nodes, const ReduceSpec& spec, const py::object& bias,
                         const py::object& out, const py::object& residual, const py::object& norm) {
  std::optional<Norm> after;
  if (!norm.is_none()) {
    const auto [weight, shift, epsilon, normed, mean, rstd] =
        norm.cast<std::tuple<ConstArray, std::optional<ConstArray>, float, Array, std::optional<Array>, Array>>();
    after = Norm{weight, shift, epsilon, normed, mean, rstd};
  }
  return {device_reduce_call(window.room(), nodes.cast<ConstArray>(), spec, bias.cast<std::optional<ConstArray>>(),
                             out.cast<Array>(), residual.cast<std::optional<ConstArray>>(), after),
          {nodes, bias, out, residual, norm}};
}

// (grad_scale, learning_rate, beta1, beta2, epsilon, weight_decay, step, master, first, second): as the op adamw, of this
// rank's slice
Update update_from(const py::tuple& adamw) {
  const auto [scale, rate, beta1, beta2, epsilon, decay, step, master, first, second] =
      adamw.cast<std::tuple<float, float, float, float, float, float, int64_t, Array, Array, Array>>();
  return {adamw_settings(scale, rate, beta1, beta2, epsilon, decay, step), master, first, second};
}

DevicePrepared reduce_update_gather(const DeviceWindow& window, const py::object& nodes, const ReduceSpec& spec,
                                    const py::tuple& adamw, const py::object& weight) {
  return {device_reduce_call(window.room(), nodes.cast<ConstArray>(), spec, {}, weight.cast<Array>(), {}, {}, update_from(adamw)),
          {nodes, weight, adamw}};
}

DevicePrepared update_gather(const DeviceWindow& window, const py::object& grad, const Bounds& bounds, const py::tuple& adamw,
                             const py::object& weight) {
  return {device_update_gather_call(window.room(), grad.cast<ConstArray>(), bounds, update_from(adamw), weight.cast<Array>()),
          {grad, weight, adamw}};
}

std::vector<DevicePrepared> prepared(std::vector<DeviceCall> calls, const std::vector<py::object>& arrays) {
  std::vector<DevicePrepared> all;
  for (DeviceCall& call : calls) all.push_back({std::move(call), arrays});
  return all;
}

std::vector<DevicePrepared> matmul_reduce(const DeviceWindow& window, const py::object& x, const py::object& w,
                                          const ProductSpec& spec, bool gather, const py::object& out) {
  return prepared(device_matmul_reduce_calls(window.room(), x.cast<ConstArray>(), w.cast<ConstArray>(), spec, gather, out.cast<Array>()),
                  {x, w, out});
}

std::vector<DevicePrepared> all_gather_matmul(const DeviceWindow& window, const py::object& x, const py::object& w,
                                              const ProductSpec& spec, const py::object& out) {
  return prepared(device_all_gather_matmul_calls(window.room(), x.cast<ConstArray>(), w.cast<ConstArray>(), spec, out.cast<Array>()),
                  {x, w, out});
}

DevicePrepared all_gather(const DeviceWindow& window, const py::object& x, const Bounds& lengths, const py::object& out,
                          const std::string& dtype) {
  return {device_all_gather_call(window.room(), x.cast<ConstArray>(), lengths, out.cast<Array>(), dtype), {x, out}};
}

DevicePrepared all_to_all(const DeviceWindow& window, const py::object& x, const Bounds& sends, const py::object& out,
                          const Bounds& receives, const std::string& dtype) {
  return {device_all_to_all_call(window.room(), x.cast<ConstArray>(), sends, out.cast<Array>(), receives, dtype), {x, out}};
}

DevicePrepared broadcast(const DeviceWindow& window, const py::object& x, int root, const std::string& dtype) {
  return {device_broadcast_call(window.room(), x.cast<Array>(), root, dtype), {x}};
}

}  // namespace

void bind_device_window(py::module_& m) {
  py::call_guard<py::gil_scoped_release> nogil;

  py::register_local_exception<Disagreement>(m, "Disagreement", PyExc_ValueError);

  py::class_<ReduceSpec>(m, "ReduceSpec", py::module_local())
      .def(py::init([](std::vector<int> nodes, std::vector<int> merges, Bounds bounds, int64_t outer, const std::string& op,
                       bool gather) {
        return ReduceSpec{std::move(nodes), std::move(merges), std::move(bounds), outer, reduce_from(op), gather};
      }));

  py::class_<ProductSpec>(m, "ProductSpec", py::module_local())
      .def(py::init([](Bounds bounds, Bounds leaves, std::vector<int> merges, Bounds places, Bounds outs, bool wgmma) {
             return ProductSpec{std::move(bounds), std::move(leaves), std::move(merges), std::move(places), std::move(outs), wgmma};
           }),
           py::arg("bounds"), py::arg("leaves"), py::arg("merges"), py::arg("places"), py::arg("outs") = Bounds(),
           py::arg("wgmma") = false);
  m.def("product_fits", &product_fits, py::arg("x"), py::arg("w"), py::arg("leaves"), py::arg("bounds"), py::arg("sums"));

  py::class_<DevicePrepared>(m, "DevicePrepared")
      .def_property_readonly("stages", [](const DevicePrepared& prepared) { return prepared.call.stages; })
      .def_property_readonly("copied", [](const DevicePrepared& prepared) { return prepared.call.copied; })
      .def_readonly("arrays", &DevicePrepared::arrays)
      .def_property_readonly("once", [](const DevicePrepared& prepared) {
        return prepared.call.reduce && prepared.call.reduce_task.once;
      });

  py::class_<DeviceWindow, std::shared_ptr<DeviceWindow>>(m, "DeviceWindow")
      .def(py::init([](int rank, int size, const std::vector<uintptr_t>& blocks, const std::vector<uintptr_t>& bases,
                       const std::vector<int64_t>& arena_bytes, int64_t staging_bytes, int blocks_of_grid, bool split,
                       std::optional<int64_t> once_bytes, std::optional<int64_t> block_bytes) {
             Tuning tuning;
             tuning.once_bytes = once_bytes.value_or(tuning.once_bytes);
             tuning.block_bytes = block_bytes.value_or(tuning.block_bytes);
             return std::make_shared<DeviceWindow>(rank, size, blocks, bases, arena_bytes, staging_bytes, blocks_of_grid, split,
                                                   tuning);
           }),
           py::arg("rank"), py::arg("size"), py::arg("blocks"), py::arg("bases"), py::arg("arena_bytes"),
           py::arg("staging_bytes"), py::arg("blocks_of_grid"), py::arg("split") = false, py::kw_only(),
           py::arg("once_bytes") = py::none(), py::arg("block_bytes") = py::none())
      .def_static("block_bytes", &DeviceWindow::block_bytes, py::arg("size"), py::arg("staging_bytes"))
      .def_static("resident_blocks", &DeviceWindow::resident_blocks)
      .def_property_readonly("late_peer", &DeviceWindow::late_peer)
      .def_property_readonly("idle", &DeviceWindow::idle)
      .def_property_readonly("copied", &DeviceWindow::copied)
      .def("reduction", &reduction, py::arg("nodes"), py::arg("spec"), py::arg("bias"), py::arg("out"),
           py::arg("residual") = py::none(), py::arg("norm") = py::none())
      .def("reduce_update_gather", &reduce_update_gather, py::arg("nodes"), py::arg("spec"), py::arg("adamw"), py::arg("weight"))
      .def("update_gather", &update_gather, py::arg("grad"), py::arg("bounds"), py::arg("adamw"), py::arg("weight"))
      .def("all_gather", &all_gather, py::arg("x"), py::arg("lengths"), py::arg("out"), py::arg("dtype") = "uint8")
      .def("all_to_all", &all_to_all, py::arg("x"), py::arg("sends"), py::arg("out"), py::arg("receives"), py::arg("dtype") = "uint8")
      .def("matmul_reduce", &matmul_reduce, py::arg("x"), py::arg("w"), py::arg("spec"), py::arg("gather"), py::arg("out"))
      .def("all_gather_matmul", &all_gather_matmul, py::arg("x"), py::arg("w"), py::arg("spec"), py::arg("out"))
      .def("broadcast", &broadcast, py::arg("x"), py::arg("root"), py::arg("dtype") = "uint8")
      .def("barrier", [](const DeviceWindow&) { return DevicePrepared{device_barrier_call(), {}}; })
      .def("refused", [](const DeviceWindow&) { return DevicePrepared{device_refused_call(), {}}; })
      .def("launch", [](DeviceWindow& window, const DevicePrepared& prepared, int stage) {
        const py::gil_scoped_release free;
        window.launch(prepared.call, stage);
      }, py::arg("call"), py::arg("stage") = 0)
      .def("check", &DeviceWindow::check)
      .def("set_deadline", &DeviceWindow::set_deadline, py::arg("seconds"), nogil)
      .def("abort", &DeviceWindow::abort, nogil)
      .def("close", &DeviceWindow::close, nogil);
}

}  // namespace plait
