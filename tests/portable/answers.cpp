// What ops must give, computed here one element at a time: the program is a test also on its own.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "cases.hpp"
#include "core/ops.hpp"
#include "core/philox.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait::portable {
namespace {

int failures;

void expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "wrong on %s: %s\n", name_of(active_isa()), what);
  failures++;
}

float* floats(const Tensor& x) {
  return static_cast<const Array&>(x).as<float>();
}
bool same(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}
float value(const Tensor& x, int64_t i) {
  return x.dtype == F32 ? x.ConstArray::as<float>()[i] : to_float(x.ConstArray::as<bfloat16>()[i]);
}
Tensor of(DType dtype, float x) {
  Tensor one = empty(dtype, {1, 1});
  if (dtype == F32)
    *floats(one) = x;
  else
    *static_cast<const Array&>(one).as<bfloat16>() = from_float<bfloat16>(x);
  return one;
}

// a * b, added to `from` where there is one.
float product(const Tensor& a, const Tensor& b, const float* from = nullptr) {
  Tensor out = of(F32, from ? *from : 0.0f);
  matmul(a, b, false, false, {0, 1}, from != nullptr, 0, std::nullopt, out);
  return *floats(out);
}

void small_integers_are_exact(DType dtype) {
  const int64_t m = 37, n = 53, k = 91;
  Tensor a = empty(dtype, {m, k}), b = empty(dtype, {k, n}), out = empty(F32, {m, n});
  const Tensor rows = integers({m * k}, 90, 1), columns = integers({k * n}, 90, 2);
  auto fill = [&](const Tensor& x, const Tensor& from) {
    for (int64_t i = 0; i < x.size(); i++) {
      const float one = float(from.ConstArray::as<int32_t>()[i] - 40);
      if (dtype == F32)
        floats(x)[i] = one;
      else
        static_cast<const Array&>(x).as<bfloat16>()[i] = from_float<bfloat16>(one);
    }
  };
  fill(a, rows), fill(b, columns);
  matmul(a, b, false, false, leaves_of(k, 5), false, 0, std::nullopt, out);
  bool right = true;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      int64_t sum = 0;
      for (int64_t l = 0; l < k; l++)
        sum += int64_t(rows.ConstArray::as<int32_t>()[i * k + l] - 40) *
               (columns.ConstArray::as<int32_t>()[l * n + j] - 40);
      right = right && floats(out)[i * n + j] == float(sum);
    }
  expect(right, "matmul of small integers is exact");
}

// float32: ascending k. bfloat16: in pairs, the second of each first.
void products_are_chains(DType dtype) {
  const int64_t m = 15, n = 35, k = 129;
  const Tensor a = normal(dtype, {m, k}, 1), b = normal(dtype, {k, n}, 2), out = empty(F32, {m, n});
  matmul(a, b, false, false, {0, k}, false, 0, std::nullopt, out);
  bool right = true;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      float sum = 0;
      for (int64_t l = 0; l < k; l++) {
        const int64_t at = dtype == F32 || l == k - 1 ? l : l ^ 1;
        sum = std::fma(value(a, i * k + at), value(b, at * n + j), sum);
      }
      right = right && same(floats(out)[i * n + j], sum);
    }
  expect(right, "matmul is a chain of fused multiply-adds");
}

// A product of bfloat16 whose sum is tiny becomes zero of its sign; tiny is judged after rounding.
void pairs_know_no_denormals() {
  const float least = std::numeric_limits<float>::min(), denormal = least / 2, unit = 0x1p-149f;
  auto pair = [](float a, float b, float from) { return product(of(BF16, a), of(BF16, b), &from); };
  expect(same(pair(denormal, 0x1p126f, 0), 0.0f), "a denormal operand is zero");
  expect(same(pair(1, 0, denormal), 0.0f), "a denormal to go on from is zero");
  expect(same(pair(1, -0.0f, -denormal), 0.0f), "-0 and what fills up the pair, +0 * +0, are +0");
  expect(same(pair(-0x1p-63f, 0x1p-64f, 0), -0.0f), "a denormal sum is zero of its sign");
  expect(same(pair(0x1p-63f, 0x1p-63f, 0), least), "2^-126 is none");
  expect(same(pair(0x1p-80f, -0x1p-80f, least), least), "what rounds up to 2^-126 is none");
  expect(same(pair(-0x1p-75f, 0x1p-76f, least), least), "nor is the tie, which is even");
  expect(same(pair(0x1p-75f, 0x1p-76f, -least), -least), "nor is the negative tie");
  expect(same(pair(-0x1.02p-75f, 0x1p-76f, least), 0.0f), "what is beyond the tie is");
  expect(same(pair(-0x1.8p-74f, 0x1p-75f, least + unit), 0.0f), "what float32 cannot hold is");
  expect(same(pair(-0x1.4p-74f, 0x1p-75f, least + unit), least), "unless it is the tie");
}

void float32_knows_denormals() {
  const float unit = 0x1p-149f;
  expect(same(product(of(F32, unit), of(F32, 3)), 3 * unit),
         "a product of float32 may be denormal");
  expect(same(product(of(F32, 0x1p-75f), of(F32, 0x1p-75f)), 0.0f), "a tie of denormals is even");
  // what another library may have set, in this thread and those that it starts
  const int64_t n = 200001;
  const Tensor x = empty(F32, {n}), out = empty(F32, {n});
  for (int64_t i = 0; i < n; i++) floats(x)[i] = unit * float(i % 100 + 1);
  flush_denormals();
  set_threads(3);
  add({x, x}, out);
  reset_rounding();
  set_threads(1);
  bool right = true;
  for (int64_t i = 0; i < n; i++)
    right = right && same(floats(out)[i], unit * float(2 * (i % 100 + 1)));
  expect(right, "flags of a thread are reset before a sum");
}

void bfloat16_rounds_to_even() {
  auto bits = [](float x) { return from_float<bfloat16>(x).bits; };
  expect(bits(0x1.01p0f) == 0x3f80 && bits(0x1.03p0f) == 0x3f82, "ties go to the even bfloat16");
  expect(bits(0x1.010002p0f) == 0x3f81, "what is beyond a tie is rounded up");
  expect(bits(std::numeric_limits<float>::max()) == 0x7f80, "the largest float becomes infinity");
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect((bits(nan) & 0x7fff) == 0x7fc0, "NaN stays NaN");
}

void exact_sums_are_exact() {
  const Tensor x = zeros(F32, {4000}), limbs = zeros(DType::int64, {LIMBS});
  floats(x)[0] = 0x1p100f, floats(x)[1500] = 0x1p-149f, floats(x)[3999] = -0x1p100f;
  exact_sum(x, false, limbs);
  expect(exact_value(limbs) == 0x1p-149, "the sum of 2^100, 2^-149 and -2^100 is 2^-149");
}

void philox_is_philox() {
  const PhiloxBlock zero = philox(0, 0, 0), ones = philox(~0ull, ~0ull, ~0ull);  // Random123's
  const uint32_t first[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  const uint32_t last[] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  expect(!std::memcmp(zero.word, first, 16) && !std::memcmp(ones.word, last, 16), "Philox 4x32-10");
}

}  // namespace

int check_answers() {
  failures = 0;
  reset_rounding();
  for (DType dtype : {F32, BF16}) {
    small_integers_are_exact(dtype);
    products_are_chains(dtype);
  }
  pairs_know_no_denormals();
  float32_knows_denormals();
  bfloat16_rounds_to_even();
  exact_sums_are_exact();
  philox_is_philox();
  return failures;
}

}  // namespace plait::portable
