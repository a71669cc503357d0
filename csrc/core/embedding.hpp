// What the embeddings of both backends share: what they ask of their arguments, and what becomes of the stack of gradients.
#pragma once
#include <algorithm>
#include <optional>
#include <vector>

#include "core/expect.hpp"
#include "core/leaves.hpp"

namespace plait {

// What becomes of the stack, whatever the tokens: slots from `low` up to `high` are written, those up to `peak` are used; of
// those that are written `fresh` ones held nothing. In every_row two slots merge that held sums before.
struct EmbeddingProgram {
  int64_t slot, low, high, peak;
  bool accumulate, every_row;
  std::vector<int64_t> fresh;
};

inline EmbeddingProgram embedding_program(const std::vector<int>& merges, int64_t slot, bool accumulate) {
  EmbeddingProgram p{slot, slot, slot, slot, accumulate, false, {}};
  std::vector<bool> held(size_t(slot), true);  // sums of all rows, from before
  for (size_t leaf = 0; leaf < merges.size(); leaf++) {
    held.push_back(leaf == 0 && accumulate);
    p.peak = std::max(p.peak, int64_t(held.size()));
    for (int m = 0; m < merges[leaf]; m++) {
      const bool upper = held.back();
      held.pop_back();
      p.every_row = p.every_row || (upper && held.back());
      held.back() = held.back() || upper;
    }
    p.low = std::min(p.low, int64_t(held.size()) - 1);
  }
  p.high = int64_t(held.size());
  for (int64_t s = p.low; s < p.high; s++)
    if (!held[size_t(s)]) p.fresh.push_back(s);
  return p;
}

inline void check_embedding_forward(const ConstArray& tokens, const ConstArray& weight, const Array& out) {
  const char* call = "embedding_forward";
  expect_ndim(call, "tokens", tokens, 1);
  expect_ndim(call, "weight", weight, 2);
  const int64_t count = tokens.shape[0];
  expect_array(call, "tokens", tokens, DType::int32, {count});
  expect_float(call, "weight", weight);
  expect_contiguous(call, "weight", weight);
  expect_array(call, "out", out, weight.dtype, {count, weight.shape[1]});
}

inline void check_embedding_backward(const ConstArray& tokens, const ConstArray& grad, const std::vector<int64_t>& leaves,
                                     const std::vector<int>& merges, int64_t slot, bool accumulate,
                                     const std::optional<ConstArray>& rows, const Array& grad_weight) {
  const char* call = "embedding_backward";
  expect_ndim(call, "tokens", tokens, 1);
  expect_ndim(call, "grad_weight", grad_weight, 3);
  const int64_t count = tokens.shape[0], channels = grad_weight.shape[2];
  expect_array(call, "tokens", tokens, DType::int32, {count});
  expect_array(call, "grad", grad, grad.dtype, {count, channels});
  PLAIT_CHECK(grad_weight.dtype == DType::float32 && (channels <= 1 || grad_weight.strides[2] == 1) &&
                  (grad_weight.shape[1] <= 1 || grad_weight.strides[1] == channels),
              call, "grad_weight is ", shape_text(grad_weight), ", must be a stack of contiguous float32");
  check_leaves(call, leaves, count);
  check_merges(call, leaves, merges, slot, accumulate, grad_weight.shape[0]);
  if (rows) {
    expect_ndim(call, "rows", *rows, 1);
    expect_array(call, "rows", *rows, DType::int64, {rows->shape[0]});
  }
}

}  // namespace plait
