// Names of element types and shapes, for error messages.
#include "core/array.hpp"

namespace plait {

const char* name_of(DType t) {
  static const char* names[] = {"float32", "bfloat16", "float16", "int8",   "int16", "int32",
                                "int64",   "uint8",    "uint16",  "uint32", "uint64"};
  return names[int(t)];
}

std::string shape_text(const ConstArray& x) {
  std::ostringstream text;
  text << "(";
  for (int i = 0; i < x.ndim; i++) text << (i ? ", " : "") << x.shape[i];
  text << (x.ndim == 1 ? ",) " : ") ") << name_of(x.dtype);
  return text.str();
}

}  // namespace plait
