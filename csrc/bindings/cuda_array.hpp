// CuPy's arrays as plait's, and any others that have __cuda_array_interface__.
#pragma once
#include "bindings/array_caster.hpp"

namespace plait {

// A device array's dtype is numpy's: CuPy gives the very object, others its text.
inline bool load_cuda(pybind11::handle src, ConstArray& a, bool writable) {
  namespace py = pybind11;
  if (!py::hasattr(src, "__cuda_array_interface__")) return false;
  const py::dict about = src.attr("__cuda_array_interface__");
  const py::tuple data = about["data"], shape = about["shape"];
  const py::object described = py::getattr(src, "dtype", about["typestr"]);
  const py::dtype dtype = py::dtype::from_args(py::isinstance<py::dtype>(described) ? described : py::object(about["typestr"]));
  const py::object strides = about.contains("strides") ? py::object(about["strides"]) : py::object(py::none());
  if (shape.size() > size_t(MAX_DIMS) || (writable && data[1].cast<bool>()) || !dtype_from(dtype, a.dtype)) return false;
  a.data = reinterpret_cast<const void*>(data[0].cast<uintptr_t>());
  a.ndim = int(shape.size());
  const int64_t item = size_of(a.dtype);
  int64_t expected = item;
  for (int i = a.ndim - 1; i >= 0; i--) {
    a.shape[i] = shape[size_t(i)].cast<int64_t>();
    const int64_t bytes = strides.is_none() ? expected : strides.cast<py::tuple>()[size_t(i)].cast<int64_t>();
    if (bytes % item) return false;
    a.strides[i] = bytes / item;
    expected *= a.shape[i];
  }
  return true;
}

}  // namespace plait
