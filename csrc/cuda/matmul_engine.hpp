// What matmul.cu asks of the engines that multiply bfloat16 matrices on tensor cores, once its arguments are checked.
#pragma once
#include <cstdint>
#include <vector>

#include "core/dtype.hpp"
#include "core/epilogue.hpp"

namespace plait {

// out (m, n) = op(a) op(b), op(a) (m, k), op(b) (k, n). Rows of a, b and out lie row_stride_* elements apart as they are
// stored: a is (k, m) where transpose_a, b (n, k) where transpose_b. No pointer or stride need be aligned beyond its type.
// m and n are at least 1; k may be 0.
//
// leaves is {0, ..., k}, with at least one leaf (which may be empty: its sum is +0). Leaf i is one chain from zero in
// ascending k, by steps of 16 that start at the leaf's first k, padded with zeros at its end; where period is not 0 they
// start afresh (and pad) at multiples of it too, counted from the first k of the leaf. Leaf 0 continues the float32 that out
// holds at `slot` if accumulate. After leaf i the top two of the stack merge merges[i] times, lower + upper. What is open at
// the end goes to out: slot, slot + 1, ..., slots_stride elements apart; what was merged within the call is not written. Only
// slots below `slot` can take part in a merge, and are then read. One output (slots_stride 0): slot is 0, everything merges,
// then bias (n) is added in float32, then the sum is rounded to out_dtype once, then comes what `after` says.
struct MatmulProblem {
  const bfloat16* a;
  const bfloat16* b;
  int64_t row_stride_a, row_stride_b;
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  const std::vector<int64_t>* leaves;
  const std::vector<int>* merges;  // as many as leaves
  int64_t slot, slots_stride;
  bool accumulate;
  int64_t period;
  const void* bias;  // or none
  DType bias_dtype;
  void* out;
  DType out_dtype;
  int64_t row_stride_out;
  After after;  // of one output, not if accumulate
};

void matmul_mma(const MatmulProblem& problem);    // mma.sync: compute capability 8.0 and later
void matmul_wgmma(const MatmulProblem& problem);  // wgmma: 9.x
bool wgmma_available();                           // on the current device

}  // namespace plait
