// Sums, conversions, fingerprints, random numbers, optimizers.
#include <cstring>

#include "cases.hpp"
#include "core/ops.hpp"
#include "core/tree.hpp"

namespace plait::portable {
namespace {

std::vector<Tensor> number(uint64_t bits) {
  Tensor x = empty(DType::uint64, {1});
  (*x.memory)[0] = bits;
  return {x};
}

Tensor weights(int64_t n, uint64_t seed) {
  Tensor x = integers({2 * n}, 1 << 30, seed);
  x.dtype = DType::uint64, x.shape[0] = n;
  return x;
}

std::vector<Tensor> sum_of(DType dtype, int64_t parts, int64_t rows, int64_t columns) {
  std::vector<ConstArray> inputs, singles;
  std::vector<Tensor> keep;
  for (int64_t i = 0; i < parts; i++) {
    keep.push_back(normal(dtype, {rows, columns}, uint64_t(i), 3));
    inputs.push_back(keep.back());
    keep.push_back(normal(F32, {rows, columns}, uint64_t(i) + 50, 3));
    singles.push_back(keep.back());
  }
  Tensor chain = empty(dtype, {rows, columns}), tree = empty(dtype, {rows, columns}),
         biased = empty(dtype, {rows, columns});
  add(inputs, chain);
  tree_sum(singles, tree_merges(parts), std::nullopt, tree);
  tree_sum(singles, tree_merges(parts), normal(dtype, {columns}, 99), biased);
  return {chain, tree, biased};
}

}  // namespace

void add_sums(Cases& cases) {
  for (DType dtype : {F32, BF16}) {
    for (int64_t parts : {1, 3, 13})
      for (const char* op : {"add", "tree_sum"})
        cases.push_back({named(op, dtype, {parts, 37, 1001}), [=] {
                           auto found = sum_of(dtype, parts, 37, 1001);
                           if (op[0] == 'a') return std::vector<Tensor>{found[0]};
                           return std::vector<Tensor>{found[1], found[2]};
                         }});
    for (int64_t channels : {1, 33, 170})
      cases.push_back({named("sum_rows", dtype, {5, 41, channels}), [=] {
                         Tensor out = normal(F32, {channels}, 2);
                         sum_rows(normal(dtype, {5, 41, channels}, 1, 1, 3), true, out);
                         return std::vector<Tensor>{out};
                       }});
    for (DType to : {F32, BF16})
      for (int64_t columns : {7, 5003})
        cases.push_back({named("convert", dtype, {11, columns}) + " to " + name_of(to), [=] {
                           Tensor out = empty(to, {11, columns}, 3);
                           convert(any_bits(dtype, {11, columns}, 1), out);
                           return std::vector<Tensor>{out};
                         }});
    for (int64_t n : {1, 1003, 70001})
      cases.push_back({named("fingerprint", dtype, {n}),
                       [=] { return number(fingerprint(any_bits(dtype, {n}, 4), 12345678901)); }});
    cases.push_back({named("weighted_bits", dtype, {201, 303}), [=] {
                       const Tensor x = any_bits(dtype, {201, 303}, 4);
                       return number(weighted_bits(x, weights(201, 5), weights(303, 6)));
                     }});
  }
  for (bool squares : {false, true})
    for (int64_t n : {1, 1000, 150001})
      cases.push_back({named(squares ? "exact_sum squares" : "exact_sum", F32, {n}), [=] {
                         Tensor limbs = zeros(DType::int64, {LIMBS});
                         exact_sum(normal(F32, {n}, 7, 0x1p-20f), squares, limbs);
                         return std::vector<Tensor>{limbs};
                       }});
  cases.push_back({"exact_value", [] {
                     Tensor limbs = zeros(DType::int64, {LIMBS});
                     exact_sum(normal(F32, {12345}, 8), true, limbs);
                     const double value = exact_value(limbs);
                     uint64_t bits;
                     std::memcpy(&bits, &value, sizeof bits);
                     return number(bits);
                   }});
}

void add_random(Cases& cases) {
  for (int64_t n : {1, 999, 40001})
    cases.push_back({named("random_normal", F32, {n}), [=] {
                       Tensor out = empty(F32, {n});
                       random_normal(42, -7, 1000003, 0.1, 0.7, out);
                       return std::vector<Tensor>{out};
                     }});
  for (DType dtype : {F32, BF16})
    for (int64_t channels : {1, 70, 901})
      cases.push_back({named("dropout", dtype, {3, 19, channels}), [=] {
                         Tensor out = empty(dtype, {3, 19, channels});
                         dropout(normal(dtype, {3, 19, channels}, 1, 1, 2), 0.3f, 5, 6, 7, 8, 9,
                                 out);
                         return std::vector<Tensor>{out};
                       }});
}

void add_optimizers(Cases& cases) {
  for (DType dtype : {F32, BF16})
    for (float scale : {1.0f, 0x1p-66f})  // squares of the second are denormal
      for (int64_t n : {1, 1025, 40001}) {
        const std::string rest = scale < 0.5f ? " denormal" : "";
        cases.push_back({named("adamw", dtype, {n}) + rest, [=] {
                           Tensor master = normal(F32, {n}, 1), first = normal(F32, {n}, 2, scale),
                                  second = positive({n}, 3), weight = empty(dtype, {n});
                           for (int64_t step : {1, 2, 1001})
                             adamw(normal(F32, {n}, uint64_t(step), scale), 0.3f, 0.01f, 0.9f,
                                   0.95f, 1e-8f, 0.1f, step, master, first, second, weight);
                           return std::vector<Tensor>{master, first, second, weight};
                         }});
        cases.push_back({named("sgd", dtype, {n}) + rest, [=] {
                           Tensor master = normal(F32, {n}, 1),
                                  momentum = normal(F32, {n}, 2, scale), weight = empty(dtype, {n});
                           sgd(normal(F32, {n}, 4, scale), 0.3f, 0.01f, 0.9f, 0.1f, master,
                               momentum, weight);
                           return std::vector<Tensor>{master, momentum, weight};
                         }});
      }
}

}  // namespace plait::portable
