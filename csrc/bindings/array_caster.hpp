// A backend's arrays as plait::ConstArray (any) and plait::Array (writable): numpy's (numpy_array.hpp) or those of a CUDA
// device (cuda_array.hpp). bfloat16 is ml_dtypes', found by its type number.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/array.hpp"

namespace plait {

inline int& bfloat16_number() {
  static int number = -1;
  return number;
}

inline bool dtype_from(const pybind11::dtype& d, DType& out) {
  if (d.byteorder() != '=' && d.byteorder() != '|') return false;
  if (d.num() == bfloat16_number()) return out = DType::bfloat16, true;
  switch (d.kind()) {
    case 'f':
      if (d.itemsize() == 4) return out = DType::float32, true;
      if (d.itemsize() == 2) return out = DType::float16, true;
      return false;
    case 'i': case 'u': {
      bool sign = d.kind() == 'i';
      switch (d.itemsize()) {
        case 1: return out = sign ? DType::int8 : DType::uint8, true;
        case 2: return out = sign ? DType::int16 : DType::uint16, true;
        case 4: return out = sign ? DType::int32 : DType::uint32, true;
        default: return out = sign ? DType::int64 : DType::uint64, true;
      }
    }
    default: return false;
  }
}

// The backend's; false if src is no such array.
bool load_array(pybind11::handle src, ConstArray& a, bool writable);

}  // namespace plait

namespace pybind11::detail {
template <>
struct type_caster<plait::ConstArray> {
  PYBIND11_TYPE_CASTER(plait::ConstArray, const_name("plait.backend.Array"));
  bool load(handle src, bool) { return plait::load_array(src, value, false); }
};
template <>
struct type_caster<plait::Array> {
  PYBIND11_TYPE_CASTER(plait::Array, const_name("plait.backend.Array (writable)"));
  bool load(handle src, bool) { return plait::load_array(src, value, true); }
};
}  // namespace pybind11::detail
