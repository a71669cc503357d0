// Checks of matmul, and which engine multiplies: by types and the chip, never by sizes.
#include "core/expect.hpp"
#include "core/leaves.hpp"
#include "core/ops.hpp"
#include "core/tree.hpp"
#include "cuda/matmul_engine.hpp"
#include "cuda/matmul_plan.hpp"
#include "cuda/matmul_simt.hpp"

namespace plait {
namespace {

void check_matrix(const ConstArray& x, const char* name) {
  PLAIT_CHECK(x.ndim == 2, "matmul", name, " must have 2 axes, got ", shape_text(x));
  PLAIT_CHECK(x.dtype == DType::float32 || x.dtype == DType::bfloat16, "matmul", name, " must be float32 or bfloat16, got ",
              shape_text(x));
  PLAIT_CHECK(x.shape[0] == 0 || x.shape[1] <= 1 || x.strides[1] == 1, "matmul", "the last axis of ", name,
              " must have stride 1, got stride ", x.strides[1], " in ", shape_text(x));
}

ConstArray from_row(const ConstArray& x, int64_t row) {
  ConstArray later = x;
  later.data = static_cast<const char*>(x.data) + row * x.strides[0] * size_of(x.dtype);
  later.shape[0] -= row;
  return later;
}

struct Leaved {  // at least one leaf, and where its merges are not given those of the tree
  std::vector<int64_t> leaves;
  std::vector<int> merges;
};

void multiply(MatmulProblem& p, const ConstArray& a, const ConstArray& b, Leaved leaved) {
  if (p.m <= 0 || p.n <= 0) return;
  if (leaved.leaves.size() < 2) leaved.leaves = {0, p.k};
  if (leaved.merges.empty()) leaved.merges = tree_merges(int64_t(leaved.leaves.size()) - 1);
  p.leaves = &leaved.leaves, p.merges = &leaved.merges;
  p.row_stride_a = a.strides[0], p.row_stride_b = b.strides[0];
  if (a.dtype != DType::bfloat16 || b.dtype != DType::bfloat16) return matmul_simt(p, a.data, a.dtype, b.data, b.dtype);
  p.a = a.as<bfloat16>(), p.b = b.as<bfloat16>();
  wgmma_available() ? matmul_wgmma(p) : matmul_mma(p);
}

}  // namespace

void matmul(const ConstArray& a, const ConstArray& b, bool transpose_a, bool transpose_b, const std::vector<int64_t>& leaves,
            bool accumulate, int64_t period, const std::optional<ConstArray>& bias, const Array& out,
            const Epilogue& epilogue) {
  check_matrix(a, "a");
  check_matrix(b, "b");
  check_matrix(out, "out");
  const int64_t rows = a.shape[transpose_a], depth = a.shape[!transpose_a], columns = b.shape[!transpose_b];
  PLAIT_CHECK(b.shape[transpose_b] == depth, "matmul", "inner sizes differ: a ", shape_text(a),
              transpose_a ? " transposed" : "", " and b ", shape_text(b), transpose_b ? " transposed" : "");
  PLAIT_CHECK(out.shape[0] == rows && out.shape[1] == columns, "matmul", "out is ", shape_text(out), ", needs (", rows, ", ",
              columns, ") for a ", shape_text(a), " and b ", shape_text(b));
  PLAIT_CHECK(rows <= 1 || out.strides[0] >= columns, "matmul", "the rows of out overlap: stride ", out.strides[0], " in ",
              shape_text(out));
  PLAIT_CHECK(out.dtype == DType::float32 || out.dtype == a.dtype, "matmul", "out is ", shape_text(out),
              ", must be float32 or of a's type: a ", shape_text(a));
  check_leaves("matmul", leaves, depth);
  PLAIT_CHECK(period >= 0, "matmul", "period is ", period, ", must be at least 0");
  if (accumulate)
    PLAIT_CHECK(out.dtype == DType::float32 && leaves.size() <= 2, "matmul",
                "accumulate needs a float32 out and a single leaf, got out ", shape_text(out), " and ", leaves.size() - 1,
                " leaves");
  MatmulProblem p = {};
  p.transpose_a = transpose_a, p.transpose_b = transpose_b;
  p.m = rows, p.n = columns, p.k = depth;
  p.accumulate = accumulate, p.period = period;
  p.out = const_cast<void*>(out.data), p.out_dtype = out.dtype, p.row_stride_out = out.strides[0];
  if (bias) {
    PLAIT_CHECK(bias->ndim == 1 && bias->shape[0] == columns && bias->contiguous() &&
                    (bias->dtype == DType::float32 || bias->dtype == DType::bfloat16),
                "matmul", "bias is ", shape_text(*bias), ", must be a contiguous float32 or bfloat16 (", columns, ",) for out ",
                shape_text(out));
    p.bias = bias->data, p.bias_dtype = bias->dtype;
  }
  p.after = after_of(epilogue, accumulate, out);
  multiply(p, a, b, {leaves, {}});
}

void matmul_backward_weight(const ConstArray& rows, const ConstArray& columns, const std::vector<int64_t>& leaves,
                            const std::vector<int>& merges, int64_t slot, bool accumulate, int64_t period, const Array& out) {
  const char* call = "matmul_backward_weight";
  check_matrix(rows, "rows");
  check_matrix(columns, "columns");
  const int64_t depth = rows.shape[0];
  PLAIT_CHECK(columns.shape[0] == depth, call, "rows ", shape_text(rows), " and columns ", shape_text(columns),
              " differ in length");
  check_leaves(call, leaves, depth);
  PLAIT_CHECK(period >= 0, call, "period is ", period, ", must be at least 0");
  PLAIT_CHECK(out.ndim == 3 && out.dtype == DType::float32 && out.shape[1] == rows.shape[1] &&
                  out.shape[2] == columns.shape[1] && (out.shape[2] <= 1 || out.strides[2] == 1),
              call, "out is ", shape_text(out), ", must be a float32 stack of (", rows.shape[1], ", ", columns.shape[1], ")");
  check_merges(call, leaves, merges, slot, accumulate, out.shape[0]);
  MatmulProblem p = {};
  p.transpose_a = true;
  p.m = out.shape[1], p.n = out.shape[2];
  p.slots_stride = out.strides[0], p.period = period;
  p.out = const_cast<void*>(out.data), p.out_dtype = out.dtype, p.row_stride_out = out.strides[1];
  for (const LeafPart& part : leaf_parts(call, merges, slot, out.shape[0])) {
    const int64_t begin = leaves[part.first];
    Leaved leaved = {{}, {merges.begin() + long(part.first), merges.begin() + long(part.last)}};
    for (size_t i = part.first; i <= part.last; i++) leaved.leaves.push_back(leaves[i] - begin);
    p.k = leaved.leaves.back(), p.slot = part.slot, p.accumulate = accumulate && part.first == 0;
    multiply(p, from_row(rows, begin), from_row(columns, begin), leaved);
  }
}

}  // namespace plait
