// The arenas and windows of a node; the GIL is released while a window advances.
#include "bindings/peer.hpp"

#include <cstring>

#include "bindings/array_caster.hpp"
#include "peer/window.hpp"

namespace py = pybind11;

namespace plait {
namespace {

struct Block {
  std::shared_ptr<Arena> arena;
  int64_t offset;
};

// `bytes` uninitialised bytes of the arena, given back when the last view of them is gone.
py::array empty(const std::shared_ptr<Arena>& arena, int64_t bytes) {
  auto block = std::make_unique<Block>(Block{arena, arena->allocate(bytes)});
  char* data = arena->base() + block->offset;
  py::capsule owner(block.release(), [](void* p) {
    std::unique_ptr<Block> gone(static_cast<Block*>(p));
    gone->arena->release(gone->offset);
  });
  return py::array(py::dtype::of<uint8_t>(), {bytes}, {int64_t(1)}, data, owner);
}

}  // namespace

void bind_peer(py::module_& m) {
  py::call_guard<py::gil_scoped_release> nogil;

  py::class_<Mapping, std::shared_ptr<Mapping>>(m, "Mapping")
      .def(py::init<int, int64_t>(), py::arg("fd"), py::arg("reserve"));

  py::class_<Arena, std::shared_ptr<Arena>>(m, "Arena")
      .def(py::init<int64_t>(), py::arg("reserve"))
      .def_property_readonly("fd", &Arena::fd)
      .def_property_readonly("used", &Arena::used)
      .def("empty", &empty);

  py::class_<ReduceSpec>(m, "ReduceSpec")
      .def(py::init([](std::vector<int> nodes, std::vector<int> merges, std::vector<int64_t> bounds, int64_t outer,
                       const std::string& op, bool gather) {
        const Reduce kind = op == "sum" ? Reduce::sum : op == "max" ? Reduce::max : Reduce::min;
        return ReduceSpec{std::move(nodes), std::move(merges), std::move(bounds), outer, kind, gather};
      }));

  py::class_<Window>(m, "Window")
      .def(py::init<std::shared_ptr<Arena>, std::vector<std::shared_ptr<Mapping>>, int, int64_t>(), py::arg("arena"),
           py::arg("peers"), py::arg("rank"), py::arg("staging"))
      .def_property_readonly("offset", &Window::offset)
      .def_property_readonly("late_peer", &Window::late_peer)
      .def_property_readonly("open", &Window::open)
      .def("connect", &Window::connect)
      .def("close", &Window::close)
      .def("start_reduce", &Window::start_reduce)
      .def("start_all_gather", &Window::start_all_gather)
      .def("start_all_to_all", &Window::start_all_to_all)
      .def("start_broadcast", &Window::start_broadcast)
      .def("start_barrier", &Window::start_barrier)
      .def("advance", &Window::advance, nogil)
      .def("abort", &Window::abort);
}

}  // namespace plait
