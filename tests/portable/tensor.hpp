// Arrays that own their memory, filled by integer arithmetic only: no libm, the same bits anywhere.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "core/array.hpp"

namespace plait::portable {

constexpr DType F32 = DType::float32, BF16 = DType::bfloat16;
using Shape = std::vector<int64_t>;

// Copies share the memory.
struct Tensor : Array {
  std::shared_ptr<std::vector<uint64_t>> memory;
  int64_t bytes = 0;
};

// In C order; rows of the last axis lie `gap` elements apart. Bytes are 0x41 until written.
Tensor empty(DType dtype, const Shape& shape, int64_t gap = 0);
Tensor zeros(DType dtype, const Shape& shape);
// The same memory with another shape; without gaps.
Tensor reshaped(const Tensor& x, const Shape& shape);

// About normal, of variance `scale`^2: a sum of Philox's 16-bit integers, times a float.
Tensor normal(DType dtype, const Shape& shape, uint64_t seed, float scale = 1.0f, int64_t gap = 0);
// Positive: a normal number's magnitude plus 1/16.
Tensor positive(const Shape& shape, uint64_t seed);
// Every kind of float alike: zeros, denormals, infinities, NaN, any exponent.
Tensor any_bits(DType dtype, const Shape& shape, uint64_t seed);
// -1, 0, ..., below - 1.
Tensor integers(const Shape& shape, int32_t below, uint64_t seed);

// FNV-1a, 64 bits, over all bytes, gaps too. All NaN are one: which NaN an operation makes is the
// processor's choice.
uint64_t digest(const std::vector<Tensor>& outputs);

}  // namespace plait::portable
