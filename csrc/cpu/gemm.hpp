// Matrix multiplication for kernels: out = op(a) op(b), each element one chain per leaf whatever
// the sizes, tiles, threads and instruction path (ops.hpp, matmul). float32 inside.
#pragma once
#include <cstdint>
#include <vector>

#include "core/dtype.hpp"

namespace plait {

// Rows that lie apart: row (i0 n1 + i1) n2 + i2 begins at element i0 s0 + i1 s1 + i2 s2.
struct Rows {
  int64_t n1, n2, s0, s1, s2;
};

// A matrix whose rows are put together from pieces of memory, the taps: its columns are (leaf, tap,
// channel of the leaf), and that of a row's tap t and channel c is the element taps[t] + c *
// channel_stride from where the row begins. `leaves` cuts the channels. Channels are adjacent, or
// rows are; multiplied along its rows it has one tap and one leaf.
struct Unfolded {
  Rows rows;
  std::vector<int64_t> taps, leaves;
  int64_t channel_stride;
};

// Element (i, j) of the operand as multiplied lies at data[i * row_stride + j * column_stride]: a
// transposed matrix has its strides swapped. float32 or bfloat16. Any strides work, one of them 1
// is fast. Or it is element (i, j) of `unfolded`, (j, i) if transposed.
struct Operand {
  const void* data;
  DType dtype;
  int64_t row_stride, column_stride;
  const Unfolded* unfolded = nullptr;
  bool transposed = false;
};

struct Gemm {
  int64_t rows, columns, depth;  // out (rows, columns) = a (rows, depth) b (depth, columns)
  Operand a, b;
  void* out;  // float32 or bfloat16, out_stride elements between rows
  DType out_dtype;
  int64_t out_stride;
  const Rows* out_rows = nullptr;  // in place of out_stride, for a single leaf 0 or a whole tree
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
// Several of the same rows, columns and types side by side along k, for what they share in caches.
void gemm_parallel(const std::vector<Gemm>& several);

}  // namespace plait
