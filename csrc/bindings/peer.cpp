// The arenas and windows of a node; the GIL is released while a window advances.
#include "bindings/peer.hpp"

#include <atomic>
#include <chrono>

#include "bindings/array_caster.hpp"
#include "core/error.hpp"
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

// A call of a window, with the arrays that it needs.
struct Prepared {
  std::shared_ptr<Window> window;
  std::shared_ptr<const Call> call;
  std::vector<py::object> arrays;
  int64_t spin_us = 20;
};

std::atomic<int64_t> spent{0};    // nanoseconds in run(), where it waited or moved much
constexpr int64_t HOLD_US = 3;         // of waiting with the GIL held: cheaper than to give it up and take it back
constexpr int64_t HOLD_BYTES = 32768;  // of a collective that is worth giving it up at once

int64_t nanoseconds() {
  using namespace std::chrono;
  return duration_cast<std::chrono::nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// Starts the call and advances it; false if it is still under way after a wait of spin_us microseconds.
bool run(const Prepared& prepared) {
  Window& window = *prepared.window;
  const bool little = prepared.call->said.size <= HOLD_BYTES;
  window.start(prepared.call);
  if (little && window.advance(0)) return true;
  struct Clock {
    int64_t start = nanoseconds();
    ~Clock() { spent += nanoseconds() - start; }
  } clock;
  if (little && window.advance(std::min(prepared.spin_us, HOLD_US))) return true;
  py::gil_scoped_release free;
  return window.advance(prepared.spin_us);
}

Reduce reduce_from(const std::string& op) {
  return op == "sum" ? Reduce::sum : op == "max" ? Reduce::max : Reduce::min;
}

using Bounds = std::vector<int64_t>;
using WindowPtr = std::shared_ptr<Window>;

Prepared prepared(const WindowPtr& window, Call call, std::vector<py::object> arrays) {
  return {window, std::make_shared<const Call>(std::move(call)), std::move(arrays)};
}

Prepared reduction(const WindowPtr& window, const py::object& x, const ReduceSpec& spec, const py::object& bias,
                const py::object& out) {
  const auto added = bias.cast<std::optional<ConstArray>>();
  return prepared(window, reduce_call(window->room(), x.cast<ConstArray>(), spec, added, out.cast<Array>()), {x, bias, out});
}

Prepared all_gather(const WindowPtr& window, const py::object& x, const Bounds& lengths, const py::object& out,
                    const std::string& dtype) {
  Call call = all_gather_call(window->room(), x.cast<ConstArray>(), lengths, out.cast<Array>(), dtype);
  return prepared(window, std::move(call), {x, out});
}

Prepared all_to_all(const WindowPtr& window, const py::object& x, const Bounds& sends, const py::object& out,
                    const Bounds& receives, const std::string& dtype) {
  Call call = all_to_all_call(window->room(), x.cast<ConstArray>(), sends, out.cast<Array>(), receives, dtype);
  return prepared(window, std::move(call), {x, out});
}

Prepared broadcast(const WindowPtr& window, const py::object& x, int root, const std::string& dtype) {
  return prepared(window, broadcast_call(window->room(), x.cast<Array>(), root, dtype), {x});
}

Prepared barrier(const WindowPtr& window) { return prepared(window, barrier_call(), {}); }
Prepared outside(const WindowPtr& window, const std::string& op, const std::string& dtype, const std::string& out_dtype,
                 bool gather, int64_t bytes) {
  return prepared(window, outside_call(reduce_from(op), dtype, out_dtype, gather, bytes), {});
}
Prepared refused(const WindowPtr& window) { return prepared(window, refused_call(), {}); }

// `bytes` bytes of a peer's arena.
py::array view(const std::shared_ptr<Mapping>& mapping, int64_t offset, int64_t bytes) {
  PLAIT_CHECK(offset >= 0 && bytes >= 0 && offset <= mapping->reserve() - bytes, "arena", "no ", bytes, " bytes at ", offset);
  return py::array(py::dtype::of<uint8_t>(), {bytes}, {int64_t(1)}, mapping->base() + offset, py::cast(mapping));
}

}  // namespace

void bind_peer(py::module_& m) {
  py::call_guard<py::gil_scoped_release> nogil;

  py::register_exception<Disagreement>(m, "Disagreement", PyExc_ValueError);
  py::class_<Mapping, std::shared_ptr<Mapping>>(m, "Mapping")
      .def(py::init<int, int64_t>(), py::arg("fd"), py::arg("reserve"))
      .def("view", &view);

  py::class_<Arena, std::shared_ptr<Arena>>(m, "Arena")
      .def(py::init<int64_t>(), py::arg("reserve"))
      .def_property_readonly("fd", &Arena::fd)
      .def_property_readonly("used", &Arena::used)
      .def("find", [](const Arena& arena, const ConstArray& x) { return arena.find(x.data, x.size() * size_of(x.dtype)); })
      .def("empty", &empty);

  py::class_<ReduceSpec>(m, "ReduceSpec")
      .def(py::init([](std::vector<int> nodes, std::vector<int> merges, std::vector<int64_t> bounds, int64_t outer,
                       const std::string& op, bool gather) {
        return ReduceSpec{std::move(nodes), std::move(merges), std::move(bounds), outer, reduce_from(op), gather};
      }));

  py::class_<Prepared>(m, "Prepared").def("run", &run).def_readwrite("spin_us", &Prepared::spin_us);
  m.def("address", [](const py::array& x) { return reinterpret_cast<uintptr_t>(x.data()); });
  m.def("run_seconds", [] { return 1e-9 * double(spent); });

  py::class_<Window, std::shared_ptr<Window>>(m, "Window")
      .def(py::init<std::shared_ptr<Arena>, std::vector<std::shared_ptr<Mapping>>, int, int64_t>(), py::arg("arena"),
           py::arg("peers"), py::arg("rank"), py::arg("staging"))
      .def_property_readonly("offset", &Window::offset)
      .def_property_readonly("late_peer", &Window::late_peer)
      .def_property_readonly("open", &Window::open)
      .def("connect", &Window::connect)
      .def("close", &Window::close)
      .def("reduction", &reduction)
      .def("all_gather", &all_gather, py::arg("x"), py::arg("lengths"), py::arg("out"), py::arg("dtype") = "uint8")
      .def("all_to_all", &all_to_all, py::arg("x"), py::arg("sends"), py::arg("out"), py::arg("receives"), py::arg("dtype") = "uint8")
      .def("broadcast", &broadcast, py::arg("x"), py::arg("root"), py::arg("dtype") = "uint8")
      .def("barrier", &barrier)
      .def("outside", &outside)
      .def("refused", &refused)
      .def("start", [](Window& window, const Prepared& prepared) { window.start(prepared.call); })
      .def("advance", &Window::advance, nogil)
      .def("abort", &Window::abort);
}

}  // namespace plait
