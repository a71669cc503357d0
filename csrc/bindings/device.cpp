// The device's side of the module: its stream, working memory, and what went wrong there.
#include "cuda/device.hpp"

#include "bindings/ops.hpp"

namespace py = pybind11;

namespace plait {

void bind_device(py::module_& m) {
  m.def("set_stream", &set_stream);
  m.def("check_faults", &check_faults, py::call_guard<py::gil_scoped_release>());
  m.def("scratch_reserved", &scratch_reserved);
  m.def("driver_version", &driver_version);
  m.def("runtime_version", &runtime_version);
  m.def("device_properties", [] {
    const DeviceProperties& p = device_properties();
    py::dict found;
    found["multiprocessors"] = p.multiprocessors;
    found["shared_bytes"] = p.shared_bytes;
    found["compute_capability"] = py::make_tuple(p.major, p.minor);
    return found;
  });
}

}  // namespace plait
