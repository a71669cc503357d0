// Arrays whose memory is the pool's.
#include "cpu/memory.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/peer.hpp"
#include "peer/arena.hpp"

namespace py = pybind11;

namespace plait {
namespace {

py::array empty(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
  int64_t bytes = dtype.itemsize();
  for (py::ssize_t n : shape) bytes *= n;
  auto* block = new MemoryBlock(take_memory(bytes));
  py::capsule owner(block, [](void* p) {
    auto* b = static_cast<MemoryBlock*>(p);
    give_memory(*b);
    delete b;
  });
  return py::array(dtype, shape, std::vector<py::ssize_t>{}, block->data, owner);
}

py::dict use() {
  const MemoryUse u = memory_use();
  py::dict found;
  found["reserved"] = u.reserved;
  found["used"] = u.used;
  found["system_calls"] = u.system_calls + arena_calls();
  found["prefault_seconds"] = u.prefault_seconds;
  found["shared"] = arena_bytes();
  return found;
}

}  // namespace

void bind_memory(py::module_& m) {
  m.def("empty", &empty);
  m.def("memory_use", &use);
  m.def("trim_memory", [] {
    trim_memory();
    trim_arenas();
  });
}

}  // namespace plait
