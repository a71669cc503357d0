// numpy arrays as plait's.
#pragma once
#include "bindings/array_caster.hpp"

namespace plait {

inline bool load_numpy(pybind11::handle src, ConstArray& a, bool writable) {
  namespace py = pybind11;
  if (!py::isinstance<py::array>(src)) return false;
  auto x = py::reinterpret_borrow<py::array>(src);
  if (x.ndim() > MAX_DIMS || (writable && !x.writeable()) || !dtype_from(x.dtype(), a.dtype))
    return false;
  a.data = x.data();
  a.ndim = int(x.ndim());
  const int64_t item = size_of(a.dtype);
  for (int i = 0; i < a.ndim; i++) {
    a.shape[i] = x.shape(i);
    if (x.strides(i) % item) return false;
    a.strides[i] = x.strides(i) / item;
  }
  return true;
}

}  // namespace plait
