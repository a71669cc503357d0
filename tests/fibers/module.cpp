// The module _cuda on fibers: the CUDA kernels on numpy arrays, and on those that say they lie on a device.
#include "bindings/cuda_array.hpp"
#include "bindings/engines.hpp"
#include "bindings/numpy_array.hpp"
#include "bindings/ops.hpp"
#include "cuda/check.hpp"
#include "cuda_memory.hpp"
#include "fibers.hpp"
#include "streams.hpp"

namespace py = pybind11;

namespace plait {

void prepare_thread() {}

bool load_array(py::handle src, ConstArray& a, bool writable) {
  return load_numpy(src, a, writable) || load_cuda(src, a, writable);
}

}  // namespace plait

PYBIND11_MODULE(_cuda, m) {
  plait::bind_ops(m);
  plait::bind_device(m);
  plait::bind_device_memory(m);
  plait::bind_device_window(m);
  plait::bind_engines(m);
  m.def("set_fiber_order", &fibers::set_order);
  m.def("pretend", [](int number, const std::string& name, bool sees, bool reaches, bool opens, bool arrives) {
    fibers::pretended() = {number, name, sees, reaches, opens, arrives};
  }, py::arg("number") = 0, py::arg("name") = "fibers of a CPU", py::arg("sees") = true, py::arg("reaches") = true,
        py::arg("opens") = true, py::arg("arrives") = true);
  m.def("device_allocations", &fibers::allocations);
  py::class_<fibers::Graph>(m, "Graph", py::module_local())
      .def("launch", &fibers::Graph::launch, py::call_guard<py::gil_scoped_release>());
  m.def("begin_capture", [](uintptr_t stream) { fibers::begin_capture(reinterpret_cast<cudaStream_t>(stream)); });
  m.def("end_capture", [](uintptr_t stream) { return fibers::end_capture(reinterpret_cast<cudaStream_t>(stream)); });
  m.def("stream_waits", &fibers::waits);
  m.def("set_device", [](int device) { PLAIT_CUDA(cudaSetDevice(device)); });
}
