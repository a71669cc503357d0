// Device memory that processes share: this rank's arena, and those of its peers.
#include "bindings/ops.hpp"
#include "peer/device_arena.hpp"

#include <memory>

namespace py = pybind11;

namespace plait {
namespace {

// Bytes of an arena, given back when this is gone.
struct DeviceBlock {
  std::shared_ptr<DeviceArena> arena;
  int64_t offset, bytes;
  DeviceBlock(std::shared_ptr<DeviceArena> arena, int64_t offset, int64_t bytes)
      : arena(std::move(arena)), offset(offset), bytes(bytes) {}
  DeviceBlock(const DeviceBlock&) = delete;
  ~DeviceBlock() { arena->release(offset); }
};

std::unique_ptr<DeviceBlock> allocate(const std::shared_ptr<DeviceArena>& arena, int64_t bytes) {
  const int64_t offset = arena->allocate(bytes);
  return offset < 0 ? nullptr : std::make_unique<DeviceBlock>(arena, offset, bytes);
}

}  // namespace

void bind_device_memory(py::module_& m) {
  py::call_guard<py::gil_scoped_release> nogil;

  py::class_<DeviceArena, std::shared_ptr<DeviceArena>>(m, "DeviceArena")
      .def(py::init<int64_t>(), py::arg("bytes"), nogil)
      .def_property_readonly("base", [](const DeviceArena& arena) { return reinterpret_cast<uintptr_t>(arena.base()); })
      .def_property_readonly("bytes", &DeviceArena::bytes)
      .def_property_readonly("used", &DeviceArena::used)
      .def("handle", [](const DeviceArena& arena) { return py::bytes(arena.handle()); })
      .def("allocate", &allocate)  // None where there is no room
      .def("find", [](const DeviceArena& arena, uintptr_t address, int64_t bytes) {
        return arena.find(reinterpret_cast<const void*>(address), bytes);
      })
      .def("keep", &DeviceArena::keep)
      .def("forget", &DeviceArena::forget)
      .def("clear", &DeviceArena::clear, nogil);

  py::class_<DeviceBlock>(m, "DeviceBlock")
      .def_property_readonly("address", [](const DeviceBlock& block) {
        return reinterpret_cast<uintptr_t>(block.arena->base() + block.offset);
      })
      .def_readonly("offset", &DeviceBlock::offset)
      .def_readonly("bytes", &DeviceBlock::bytes);

  py::class_<DeviceMapping>(m, "DeviceMapping")
      .def(py::init([](const py::bytes& handle) { return std::make_unique<DeviceMapping>(std::string(handle)); }))
      .def_property_readonly("base", [](const DeviceMapping& mapping) { return reinterpret_cast<uintptr_t>(mapping.base()); })
      .def("close", &DeviceMapping::close, nogil);

  m.def("device_identity", [] {
    const DeviceIdentity found = device_identity();
    return py::make_tuple(found.uuid, found.bus, found.name);
  });
  m.def("reaches_device", &reaches_device);
}

}  // namespace plait
