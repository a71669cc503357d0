// The module _cuda: ops on arrays of a CUDA device, and the stream they run on.
#include "bindings/cuda_array.hpp"
#include "bindings/engines.hpp"
#include "bindings/ops.hpp"
#include "cuda/device.hpp"

namespace py = pybind11;

namespace plait {

void prepare_thread() {}

bool load_array(py::handle src, ConstArray& a, bool writable) { return load_cuda(src, a, writable); }

}  // namespace plait

using namespace plait;

PYBIND11_MODULE(_cuda, m) {
  bind_ops(m);
  bind_device(m);
  bind_device_memory(m);
  bind_device_window(m);
  bind_engines(m);
}
