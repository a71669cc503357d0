// Matrix multiplication for kernels: out = op(a) op(b), each element one chain per leaf whatever
// the sizes, tiles, threads and instruction path (ops.hpp, matmul). float32 inside.
#pragma once
#include <cstdint>
#include <vector>

#include "core/dtype.hpp"

namespace plait {

// Element (i, j) of the operand as multiplied lies at data[i * row_stride + j * column_stride]: a
// transposed matrix has its strides swapped. float32 or bfloat16. Any strides work, one of them 1
// is fast.
struct Operand {
  const void* data;
  DType dtype;
  int64_t row_stride, column_stride;
};

struct Gemm {
  int64_t rows, columns, depth;  // out (rows, columns) = a (rows, depth) b (depth, columns)
  Operand a, b;
  void* out;  // float32 or bfloat16, out_stride elements between rows
  DType out_dtype;
  int64_t out_stride;
  bool accumulate = false;     // leaf 0 continues the chain that out holds, in float32
  const void* bias = nullptr;  // (columns), added last
  DType bias_dtype = DType::float32;
  std::vector<int64_t> leaves{};  // bounds 0 ... depth; empty: one leaf
  // Leaf 0 is in slot `slot` of the stack out, whose slots lie slot_stride apart; after leaf i the
  // top two merge merges[i] times, lower + upper. Empty: one slot, and the tree.
  std::vector<int> merges{};
  int slot = 0;
  int64_t slot_stride = 0;
  int64_t period = 0;             // pairs of a leaf start afresh at its multiples; 0: never
};

// In the calling thread, for use inside parallel_for.
void gemm(const Gemm& g);
// On the pool's threads. The bits are the same.
void gemm_parallel(const Gemm& g);

}  // namespace plait
