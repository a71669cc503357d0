// How fingerprint and weighted_bits mix the bits of an element, and what they ask of their arguments.
#pragma once
#include <utility>

#include "core/array.hpp"
#include "core/inline.hpp"

namespace plait {

// The finalizer of splitmix64 (Steele, Lea, Flood 2014): every bit of z moves half of the result's.
PLAIT_INLINE uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
PLAIT_INLINE uint64_t mixed_bits(uint64_t bits) {
  return mixed(bits + 1);
}
PLAIT_INLINE uint64_t mixed_at(uint64_t index, uint64_t bits) {
  return mixed(index * 0x9e3779b97f4a7c15u + mixed_bits(bits));
}

inline void check_fingerprint(const ConstArray& x) {
  PLAIT_CHECK(x.contiguous() && (x.dtype == DType::float32 || x.dtype == DType::bfloat16), "fingerprint",
              "needs contiguous float32 or bfloat16, got ", shape_text(x));
}
inline void check_weighted_bits(const ConstArray& x, const ConstArray& rows, const ConstArray& columns) {
  const int64_t item = size_of(x.dtype);
  const bool rows_contiguous = x.size() == 0 || x.shape[1] == 1 || x.strides[1] == 1;
  PLAIT_CHECK(x.ndim == 2 && rows_contiguous && (item == 2 || item == 4), "weighted_bits",
              "needs (R, C) of 2 or 4 bytes an element, rows contiguous, got ", shape_text(x));
  for (const auto& [weights, n] : {std::pair(&rows, x.shape[0]), std::pair(&columns, x.shape[1])})
    PLAIT_CHECK(weights->dtype == DType::uint64 && weights->ndim == 1 && weights->contiguous() && weights->shape[0] == n,
                "weighted_bits", "needs a uint64 for each row and column of ", shape_text(x));
}

}  // namespace plait
