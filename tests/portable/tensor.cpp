// How tensors are made and digested.
#include "tensor.hpp"

#include <cstring>

#include "core/philox.hpp"

namespace plait::portable {
namespace {

// Element i is value(a block of Philox of its own).
template <class Value>
Tensor filled(DType dtype, const Shape& shape, int64_t gap, uint64_t seed, const Value& value) {
  Tensor x = empty(dtype, shape, gap);
  const int64_t columns = shape.empty() ? 1 : shape.back();
  PLAIT_FLOATS(dtype, "filled", [&](auto zero) {
    using T = decltype(zero);
    T* data = static_cast<Array&>(x).as<T>();
    for (int64_t i = 0; i < x.size(); i++)
      data[i / columns * (columns + gap) + i % columns] =
          from_float<T>(value(philox(uint64_t(i), 0, seed)));
  });
  return x;
}

float one_normal(const PhiloxBlock& block) {
  int32_t sum = 0;
  for (uint32_t word : block.word) sum += int32_t(word & 0xffff) + int32_t(word >> 16) - 0xffff;
  return float(sum) * (1.0f / 53510.0f);  // 2^16 sqrt(8 / 12)
}

float one_of_any(const PhiloxBlock& block) {
  static const uint32_t kinds[] = {0, 0x7f800000u, 0x7fc00000u, 1, 0x00800000u, 0x3f800000u};
  uint32_t u = block.word[0];
  if (block.word[1] % 8 == 0) u = (u & 0x80000000u) | kinds[block.word[2] % 6];
  if (block.word[1] % 8 == 1) u &= 0x807fffffu;                    // a denormal
  if (block.word[1] % 8 > 4) u = (u & 0x83ffffffu) | 0x3c000000u;  // 2^-7 to 2^8
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

uint64_t add_bytes(uint64_t hash, uint64_t value, int count) {
  for (int i = 0; i < count; i++) hash = (hash ^ (value >> 8 * i & 255)) * 0x100000001b3u;
  return hash;
}

template <class Word>
uint64_t add_words(uint64_t hash, const Tensor& x, Word infinity) {
  const Word sign = Word(Word(1) << (8 * sizeof(Word) - 1)), magnitude = Word(sign - 1);
  const auto* words = reinterpret_cast<const char*>(x.memory->data());
  for (int64_t i = 0; i < x.bytes; i += int64_t(sizeof(Word))) {
    Word w;
    std::memcpy(&w, words + i, sizeof w);
    if (infinity && (w & magnitude) > infinity) w = magnitude;
    hash = add_bytes(hash, w, sizeof w);
  }
  return hash;
}

}  // namespace

Tensor empty(DType dtype, const Shape& shape, int64_t gap) {
  Tensor x;
  x.dtype = dtype, x.ndim = int(shape.size());
  int64_t stride = 1;
  for (int i = x.ndim - 1; i >= 0; i--) {
    x.shape[i] = shape[size_t(i)], x.strides[i] = stride;
    stride *= shape[size_t(i)] + (i == x.ndim - 1 ? gap : 0);
  }
  x.bytes = stride * size_of(dtype);
  x.memory = std::make_shared<std::vector<uint64_t>>(size_t(x.bytes + 7) / 8, 0x4141414141414141u);
  x.data = x.memory->data();
  return x;
}

Tensor zeros(DType dtype, const Shape& shape) {
  Tensor x = empty(dtype, shape);
  std::memset(x.memory->data(), 0, size_t(x.bytes));
  return x;
}

Tensor reshaped(const Tensor& x, const Shape& shape) {
  Tensor y = x;
  y.ndim = int(shape.size());
  int64_t stride = 1;
  for (int i = y.ndim - 1; i >= 0; i--) {
    y.shape[i] = shape[size_t(i)], y.strides[i] = stride;
    stride *= shape[size_t(i)];
  }
  PLAIT_CHECK(stride == x.size() && x.contiguous(), "reshaped", "x is ", shape_text(x));
  return y;
}

Tensor normal(DType dtype, const Shape& shape, uint64_t seed, float scale, int64_t gap) {
  return filled(dtype, shape, gap, seed,
                [=](const PhiloxBlock& block) { return one_normal(block) * scale; });
}

Tensor positive(const Shape& shape, uint64_t seed) {
  return filled(F32, shape, 0, seed, [](const PhiloxBlock& block) {
    const float x = one_normal(block);
    return (x < 0 ? -x : x) + 0.0625f;
  });
}

Tensor any_bits(DType dtype, const Shape& shape, uint64_t seed) {
  return filled(dtype, shape, 0, seed, [](const PhiloxBlock& block) { return one_of_any(block); });
}

Tensor integers(const Shape& shape, int32_t below, uint64_t seed) {
  Tensor x = empty(DType::int32, shape);
  int32_t* data = static_cast<Array&>(x).as<int32_t>();
  for (int64_t i = 0; i < x.size(); i++)
    data[i] = int32_t(philox(uint64_t(i), 1, seed).word[0] % uint32_t(below + 1)) - 1;
  return x;
}

uint64_t digest(const std::vector<Tensor>& outputs) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const Tensor& x : outputs) {
    if (x.dtype == F32)
      hash = add_words<uint32_t>(hash, x, 0x7f800000u);
    else if (x.dtype == BF16)
      hash = add_words<uint16_t>(hash, x, 0x7f80u);
    else
      hash = add_words<uint8_t>(hash, x, 0);
  }
  return hash;
}

}  // namespace plait::portable
