// The module _cpu: ops on numpy arrays, its threads and instruction paths, memory, and collectives of a node.
#include "bindings/numpy_array.hpp"
#include "bindings/ops.hpp"
#include "bindings/peer.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace py = pybind11;

namespace plait {

void prepare_thread() { reset_rounding(); }

bool load_array(py::handle src, ConstArray& a, bool writable) {
  reset_rounding();  // before the call's numbers become float32: they come after its first array
  return load_numpy(src, a, writable);
}

}  // namespace plait

using namespace plait;

PYBIND11_MODULE(_cpu, m) {
  bind_ops(m);
  m.def("set_threads", &set_threads, py::call_guard<py::gil_scoped_release>());
  m.def("threads", &threads);
  m.def("isa", [] { return name_of(active_isa()); });
  m.def("set_isa", [](const std::string& name) {
    for (int i = 0; i <= int(Isa::amx_bf16_emulated); i++)
      if (name == name_of(Isa(i))) return set_isa(Isa(i));
    fail("set_isa", "unknown instruction path ", name);
  });
  bind_memory(m);
  bind_peer(m);
}
