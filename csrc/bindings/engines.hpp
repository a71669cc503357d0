// What _cuda has for tests and benchmarks: engines of matmul by themselves.
#pragma once
#include <pybind11/pybind11.h>

namespace plait {

void bind_engines(pybind11::module_& m);

}  // namespace plait
