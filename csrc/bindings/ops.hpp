// What both modules bind: every op of core/ops.hpp.
#pragma once
#include <pybind11/pybind11.h>

namespace plait {

void bind_ops(pybind11::module_& m);
// The module's: what a thread needs before it enters an op.
void prepare_thread();

// What _cuda has besides ops.
void bind_device(pybind11::module_& m);
void bind_device_memory(pybind11::module_& m);
void bind_device_window(pybind11::module_& m);

}  // namespace plait
