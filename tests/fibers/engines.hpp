// Engines of matmul, which tests call by themselves.
#pragma once
#include <pybind11/pybind11.h>

namespace plait {

void bind_engines(pybind11::module_& m);

}  // namespace plait
