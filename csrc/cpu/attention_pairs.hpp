// Attention on bfloat16: its products are the matrix multiplication's, in pairs or with AMX in
// blocks.
#pragma once
#include "cpu/attention_shape.hpp"
#include "cpu/gemm_tile.hpp"

namespace plait::attention {

// The tile kernel of the active path, made ready in this thread.
class Tiles {
 public:
  Tiles();
  ~Tiles();
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // out, log_sum of one block of queries.
  void forward_block(const Sizes& n, Head<const bfloat16> q, Head<const bfloat16> k,
                     Head<const bfloat16> v, float scale, int64_t first_query, Head<bfloat16> out,
                     float* log_sum) const;
  // All heads that share one head of keys and values.
  void backward_group(const Sizes& n, const Backward& x, int64_t sample, int64_t group) const;

 private:
  // An operand in panels, `stride` floats apart.
  struct Panels {
    float* at;
    int64_t stride;
  };
  int64_t left_size(int64_t rows, int64_t depth) const;
  int64_t right_size(int64_t columns, int64_t depth) const;
  // Element (w, k) of x lies at x[w * wide_stride + k * depth_stride]; w are rows of the product on
  // its left side, columns on its right, where zeros fill them up to a multiple of 32.
  Panels left(const bfloat16* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
              int64_t depth, float* out) const;
  Panels right(const bfloat16* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
               int64_t depth, float* out) const;
  // The same from column w and from k = depth on: multiples of 32.
  Panels from(Panels b, int64_t w, int64_t depth) const;
  // c (rows, columns) = [c +] a b; columns are a multiple of 32.
  void multiply(Panels a, Panels b, int64_t rows, int64_t columns, int64_t depth, bool accumulate,
                float* c, int64_t c_row) const;

  const TileKernel& kernel_;
};

}  // namespace plait::attention
