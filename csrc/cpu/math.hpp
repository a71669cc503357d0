// core/math.hpp on vectors: their bits, known before its templates are.
#pragma once
#include "cpu/vec.hpp"

namespace plait::math {

template <class V>
PLAIT_INLINE Uints<V> bits_of(V x) {
  return Uints<V>(x);
}
template <class U>
PLAIT_INLINE auto of_bits(U u) {
  return typename VectorOf<sizeof(U) / 4>::Floats(u);
}

}  // namespace plait::math

#include "core/math.hpp"
