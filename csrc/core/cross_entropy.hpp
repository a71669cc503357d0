// What the cross-entropy of both backends shares: formulas of an element or a pair, and what they ask of their arguments (V is
// float or, on the CPU, a vector of floats: then include cpu/math.hpp first).
#pragma once
#include <algorithm>
#include <vector>

#include "core/expect.hpp"
#include "core/math.hpp"

namespace plait {

// What is subtracted from logits: where there is nothing but -infinity, 0, so that exp gives 0 and
// not NaN.
template <class V>
PLAIT_INLINE V base_of(V peak) {
  return peak == -math::INF ? all<V>(0.0f) : peak;
}

// Merges (peak, sum) of what comes after into (peak, sum). A peak skips NaN; the sum keeps it.
template <class V>
PLAIT_INLINE void merge_sums(V& peak, V& sum, V upper_peak, V upper_sum) {
  const V most = upper_peak < peak ? peak : upper_peak, base = base_of(most);
  sum = sum * math::exp(peak - base) + upper_sum * math::exp(upper_peak - base);
  peak = most;
}

PLAIT_INLINE float loss_of(float peak, float sum, float target_logit, int32_t target) {
  return target < 0 ? 0.0f : (math::log(sum) + peak) - target_logit;
}

// Columns of the shard that are no padding.
inline int64_t real_columns(int64_t first_column, int64_t columns, int64_t vocabulary) {
  return std::clamp<int64_t>(vocabulary - first_column, 0, columns);
}

inline void check_cross_entropy_rows(const char* call, const ConstArray& logits, const ConstArray& targets,
                                     const ConstArray& peak, const ConstArray& sum) {
  expect_ndim(call, "logits", logits, 2);
  const int64_t rows = logits.shape[0];
  expect_unit_last(call, "logits", logits);
  expect_array(call, "targets", targets, DType::int32, {rows});
  expect_array(call, "peak", peak, DType::float32, {rows});
  expect_array(call, "sum", sum, DType::float32, {rows});
}

// `most`: what the stack of the merge holds.
inline void check_cross_entropy_merge(const ConstArray& parts, const std::vector<int>& merges, const Array& out, int64_t most) {
  const char* call = "cross_entropy_merge";
  expect_ndim(call, "parts", parts, 3);
  const int64_t n = parts.shape[0], rows = parts.shape[2];
  expect_array(call, "parts", parts, DType::float32, {n, 2, rows});
  expect_array(call, "out", out, DType::float32, {2, rows});
  PLAIT_CHECK(int64_t(merges.size()) == n, call, n, " parts, but ", merges.size(), " merge counts");
  int64_t held = 0;
  for (int count : merges) {
    held++;
    PLAIT_CHECK(count >= 0 && held > count && held <= most, call, "these merge counts leave ", held - count,
                " parts on a stack of at most ", most);
    held -= count;
  }
  PLAIT_CHECK(held == 1, call, "these merge counts leave ", held, " parts, expected 1");
}

inline void check_cross_entropy_loss(const ConstArray& peak, const ConstArray& sum, const ConstArray& target_logit,
                                     const ConstArray& targets, const Array& losses) {
  const char* call = "cross_entropy_loss";
  expect_ndim(call, "losses", losses, 1);
  const int64_t rows = losses.shape[0];
  expect_array(call, "losses", losses, DType::float32, {rows});
  expect_array(call, "targets", targets, DType::int32, {rows});
  expect_array(call, "peak", peak, DType::float32, {rows});
  expect_array(call, "sum", sum, DType::float32, {rows});
  expect_array(call, "target_logit", target_logit, DType::float32, {rows});
}

inline void check_cross_entropy_backward(const ConstArray& logits, const ConstArray& targets, const ConstArray& peak,
                                         const ConstArray& sum, const Array& grad_logits) {
  const char* call = "cross_entropy_backward";
  check_cross_entropy_rows(call, logits, targets, peak, sum);
  expect_contiguous(call, "logits", logits);
  expect_array(call, "grad_logits", grad_logits, logits.dtype, {logits.shape[0], logits.shape[1]});
}

}  // namespace plait
