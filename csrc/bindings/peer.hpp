// Binds what the CPU module has besides ops.
#pragma once
#include <pybind11/pybind11.h>

namespace plait {

void bind_memory(pybind11::module_& m);
void bind_peer(pybind11::module_& m);

}  // namespace plait
