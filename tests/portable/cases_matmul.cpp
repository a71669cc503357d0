// Matrix products: both types, transposes, leaves, pairs that start afresh, what flushes to zero.
#include "cases.hpp"
#include "core/ops.hpp"
#include "core/tree.hpp"

namespace plait::portable {

std::string named(const std::string& op, DType dtype, const Shape& sizes) {
  std::string name = op + " " + name_of(dtype);
  for (size_t i = 0; i < sizes.size(); i++) name += (i ? "x" : " ") + std::to_string(sizes[i]);
  return name;
}

std::vector<int64_t> leaves_of(int64_t n, int64_t count) {
  std::vector<int64_t> leaves;
  for (int64_t i = 0; i <= count; i++) leaves.push_back(n * i / count);
  return leaves;
}

namespace {

void add_product(Cases& cases, DType dtype, int64_t m, int64_t n, int64_t k, float scale) {
  for (int way = 0; way < 4; way++) {
    const bool across = way & 1, down = way & 2;
    auto run = [=] {
      const Tensor a = normal(dtype, across ? Shape{k, m} : Shape{m, k}, 1, scale, 3);
      const Tensor b = normal(dtype, down ? Shape{n, k} : Shape{k, n}, 2, scale, 5);
      const Tensor bias = normal(dtype, {n}, 3, scale * scale);
      Tensor out = empty(dtype, {m, n}), plain = empty(F32, {m, n}), more = empty(F32, {m, n});
      matmul(a, b, across, down, leaves_of(k, k < 3 ? 1 : 3), false, 0, bias, out);
      matmul(a, b, across, down, {0, k}, false, 0, std::nullopt, plain);
      matmul(a, b, across, down, {0, k}, false, 0, std::nullopt, more);
      matmul(a, b, across, down, {0, k}, true, 7, std::nullopt, more);
      const Tensor other = normal(dtype, {m, n}, 4, scale, 3);
      Tensor before = empty(dtype, {m, n}), gelu = empty(dtype, {m, n});
      Tensor slope = empty(dtype, {m, n}), sum = empty(dtype, {m, n});
      matmul(a, b, across, down, {0, k}, false, 0, bias, before, {gelu, {}, {}});
      matmul(a, b, across, down, {0, k}, false, 0, std::nullopt, slope, {{}, other, {}});
      matmul(a, b, across, down, leaves_of(k, k < 3 ? 1 : 3), false, 0, bias, sum, {{}, {}, other});
      return std::vector<Tensor>{out, plain, more, before, gelu, slope, sum};
    };
    const std::string how =
        std::string(across ? " transposed" : " plain") + (down ? " transposed" : " plain");
    cases.push_back(
        {named("matmul", dtype, {m, n, k}) + how + (scale < 0.5f ? " denormal" : ""), run});
  }
}

// Chains of bfloat16 about 2^-126, with terms of some 2^-152: processors differ in what is
// denormal.
void add_least(Cases& cases) {
  auto scaled = [](DType dtype, const Shape& shape, uint64_t seed, float unit, float from) {
    const Tensor numbers = integers(shape, 16, seed), x = empty(dtype, shape);
    PLAIT_FLOATS(dtype, "scaled", [&](auto zero) {
      using T = decltype(zero);
      for (int64_t i = 0; i < x.size(); i++)
        static_cast<const Array&>(x).as<T>()[i] =
            from_float<T>(from + unit * float(numbers.ConstArray::as<int32_t>()[i] - 7));
    });
    return x;
  };
  cases.push_back({"matmul bfloat16 about the least float", [=] {
                     const Tensor a = scaled(BF16, {60, 6}, 1, 0x1p-76f, 0);
                     const Tensor b = scaled(BF16, {6, 70}, 2, 0x1p-76f, 0);
                     const Tensor above = scaled(F32, {60, 70}, 3, 0x1p-149f, 0x1.00001p-126f);
                     const Tensor below = scaled(F32, {60, 70}, 4, 0x1p-149f, -0x1.00001p-126f);
                     const Tensor near = scaled(F32, {60, 70}, 5, 0x1p-149f, 0x1p-126f);
                     for (const Tensor& out : {above, below, near})
                       matmul(a, b, false, false, {0, 6}, true, 0, std::nullopt, out);
                     return std::vector<Tensor>{above, below, near};
                   }});
}

void add_backward_weight(Cases& cases, DType dtype, int64_t m, int64_t n, int64_t period) {
  auto run = [=] {
    const int64_t leaves = 5, k = 3 * leaves * period;
    const Tensor rows = normal(dtype, {k, m}, 1, 1, 3), columns = normal(dtype, {k, n}, 2);
    Tensor out = normal(F32, {4, m, n}, 3);
    matmul_backward_weight(rows, columns, leaves_of(k, leaves), tree_merges(leaves), 0, true,
                           period, out);
    return std::vector<Tensor>{out};
  };
  cases.push_back({named("matmul_backward_weight", dtype, {m, n, period}), run});
}

}  // namespace

void add_matmul(Cases& cases) {
  for (DType dtype : {F32, BF16}) {
    add_product(cases, dtype, 1, 1, 1, 1);
    add_product(cases, dtype, 17, 35, 93, 1);
    add_product(cases, dtype, 61, 131, 203, 1);
    add_product(cases, dtype, 5, 33, 1101, 1);        // more than is packed at once
    add_product(cases, dtype, 15, 37, 41, 0x1p-64f);  // sums about 2^-126
    add_product(cases, dtype, 15, 37, 41, 0x1p-66f);
    for (int64_t period : {1, 7, 16, 21}) add_backward_weight(cases, dtype, 33, 67, period);
  }
  add_least(cases);
  cases.push_back({"matmul of mixed types", [] {
                     const Tensor a = normal(F32, {13, 50}, 1), b = normal(BF16, {50, 21}, 2);
                     Tensor out = empty(F32, {13, 21});
                     matmul(a, b, false, false, {0, 50}, false, 0, std::nullopt, out);
                     return std::vector<Tensor>{out};
                   }});
  for (DType dtype : {F32, BF16})
    cases.push_back({named("matmul", dtype, {}) + " of any bits", [=] {
                       const Tensor a = any_bits(dtype, {40, 3}, 1),
                                    b = any_bits(dtype, {3, 50}, 2);
                       Tensor out = empty(F32, {40, 50});
                       matmul(a, b, false, false, {0, 3}, false, 0, std::nullopt, out);
                       return std::vector<Tensor>{out};
                     }});
}

}  // namespace plait::portable
