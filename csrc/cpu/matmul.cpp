// Checks of matmul; gemm.cpp does the work.
#include "core/ops.hpp"
#include "cpu/epilogue.hpp"
#include "cpu/gemm.hpp"
#include "core/leaves.hpp"

namespace plait {
namespace {

void check_matrix(const ConstArray& x, const char* name) {
  PLAIT_CHECK(x.ndim == 2, "matmul", name, " must have 2 axes, got ", shape_text(x));
  PLAIT_CHECK(x.dtype == DType::float32 || x.dtype == DType::bfloat16, "matmul", name,
              " must be float32 or bfloat16, got ", shape_text(x));
  PLAIT_CHECK(x.shape[0] == 0 || x.shape[1] <= 1 || x.strides[1] == 1, "matmul",
              "the last axis of ", name, " must have stride 1, got stride ", x.strides[1], " in ",
              shape_text(x));
}

Operand operand(const ConstArray& x, bool transpose) {
  return transpose ? Operand{x.data, x.dtype, 1, x.strides[0]}
                   : Operand{x.data, x.dtype, x.strides[0], 1};
}

}  // namespace

void matmul(const ConstArray& a, const ConstArray& b, bool transpose_a, bool transpose_b,
            const std::vector<int64_t>& leaves, bool accumulate, int64_t period,
            const std::optional<ConstArray>& bias, const Array& out, const Epilogue& epilogue) {
  check_matrix(a, "a");
  check_matrix(b, "b");
  check_matrix(out, "out");
  const int64_t rows = a.shape[transpose_a], depth = a.shape[!transpose_a],
                columns = b.shape[!transpose_b];
  PLAIT_CHECK(b.shape[transpose_b] == depth, "matmul", "inner sizes differ: a ", shape_text(a),
              transpose_a ? " transposed" : "", " and b ", shape_text(b),
              transpose_b ? " transposed" : "");
  PLAIT_CHECK(out.shape[0] == rows && out.shape[1] == columns, "matmul", "out is ", shape_text(out),
              ", needs (", rows, ", ", columns, ") for a ", shape_text(a), " and b ",
              shape_text(b));
  PLAIT_CHECK(rows <= 1 || out.strides[0] >= columns, "matmul", "the rows of out overlap: stride ",
              out.strides[0], " in ", shape_text(out));
  PLAIT_CHECK(out.dtype == DType::float32 || out.dtype == a.dtype, "matmul", "out is ",
              shape_text(out), ", must be float32 or of a's type: a ", shape_text(a));
  check_leaves("matmul", leaves, depth);
  PLAIT_CHECK(period >= 0, "matmul", "period is ", period, ", must be at least 0");
  if (accumulate)
    PLAIT_CHECK(out.dtype == DType::float32 && leaves.size() <= 2, "matmul",
                "accumulate needs a float32 out and a single leaf, got out ", shape_text(out),
                " and ", leaves.size() - 1, " leaves");
  Gemm g{rows,
         columns,
         depth,
         operand(a, transpose_a),
         operand(b, transpose_b),
         const_cast<void*>(out.data),
         out.dtype,
         out.strides[0]};
  g.accumulate = accumulate;
  g.leaves = leaves;
  g.period = period;
  if (bias) {
    PLAIT_CHECK(bias->ndim == 1 && bias->shape[0] == columns && bias->contiguous() &&
                    (bias->dtype == DType::float32 || bias->dtype == DType::bfloat16),
                "matmul", "bias is ", shape_text(*bias),
                ", must be a contiguous float32 or bfloat16 (", columns, ",) for out ",
                shape_text(out));
    g.bias = bias->data;
    g.bias_dtype = bias->dtype;
  }
  after_of(epilogue, accumulate, out);  // its checks
  gemm_parallel(g);
  finish(epilogue, out);
}

void matmul_backward_weight(const ConstArray& rows, const ConstArray& columns,
                            const std::vector<int64_t>& leaves, const std::vector<int>& merges,
                            int64_t slot, bool accumulate, int64_t period, const Array& out) {
  const char* call = "matmul_backward_weight";
  check_matrix(rows, "rows");
  check_matrix(columns, "columns");
  const int64_t depth = rows.shape[0];
  PLAIT_CHECK(columns.shape[0] == depth, call, "rows ", shape_text(rows), " and columns ",
              shape_text(columns), " differ in length");
  check_leaves(call, leaves, depth);
  PLAIT_CHECK(period >= 0, call, "period is ", period, ", must be at least 0");
  PLAIT_CHECK(out.ndim == 3 && out.dtype == DType::float32 && out.shape[1] == rows.shape[1] &&
                  out.shape[2] == columns.shape[1] && (out.shape[2] <= 1 || out.strides[2] == 1),
              call, "out is ", shape_text(out), ", must be a float32 stack of (", rows.shape[1],
              ", ", columns.shape[1], ")");
  check_merges(call, leaves, merges, slot, accumulate, out.shape[0]);
  Gemm g{out.shape[1],
         out.shape[2],
         depth,
         operand(rows, true),
         operand(columns, false),
         const_cast<void*>(out.data),
         out.dtype,
         out.strides[1]};
  g.accumulate = accumulate;
  g.leaves = leaves;
  g.period = period;
  g.merges = merges;
  g.slot = int(slot);
  g.slot_stride = out.strides[0];
  gemm_parallel(g);
}

}  // namespace plait
