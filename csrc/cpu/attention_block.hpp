// The pieces of attention on blocks of 64 queries x 64 keys. Scores lie as (keys, queries): the
// lanes are queries, so the softmax needs no sums across lanes, and a query's bits depend on no
// other query.
#pragma once
#include <cstdint>

#include "core/dtype.hpp"

namespace plait::attention {

constexpr int64_t QUERIES = 64, KEYS = 64;  // of a block, for every head size

inline int64_t padded(int64_t n, int64_t unit = 16) {
  return (n + unit - 1) / unit * unit;
}

// c[m][0 .. n) = c * factor + sum over k ascending of a[m * a_row + k * a_step] * b[k][0 .. n), one
// chain of fused multiply-adds each; n is a multiple of 16. factor is null (1) or n floats; without
// `accumulate` c starts at 0.
struct Product {
  const float* a;
  int64_t a_row, a_step;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  int64_t rows, columns, depth;
  const float* factor;
  bool accumulate;
};
void multiply(const Product& p);

// One step of the online softmax on scores (keys, queries), rows of 64 floats. Query q sees keys up
// to last + q (infinity: all). scores become exp(scale * score - peak), factor what earlier sums
// and outputs are to be multiplied by. out (keys, rows of 64) gets the exponentials in its type; it
// may be scores.
template <class T>
void softmax_step(float* scores, int64_t keys, int64_t queries, float scale, float last,
                  float* peak, float* sum, float* factor, T* out);
// out becomes probabilities = exp(scale * score - log_sum), grads_out probabilities * (grads -
// delta) * scale, each rounded to its type once; they may be scores and grads.
template <class T>
void softmax_backward(const float* scores, const float* grads, int64_t keys, int64_t queries,
                      float scale, float last, const float* log_sum, const float* delta, T* out,
                      T* grads_out);
// x (rows, rows of 64) times factor, which has one float for each query.
void scale_columns(float* x, int64_t rows, int64_t queries, const float* factor);
// Ends a block of 64 queries: out (size, 64) / sum, 0 where no key was seen; log_sum = peak +
// log(sum).
void softmax_end(float* out, int64_t size, const float* peak, const float* sum, float* log_sum);

// rows of x (rows, size) straight (rows, padded size), or turned (size, 64), each filled up with
// zeros.
void copy_rows(const float* x, int64_t stride, int64_t rows, int64_t size, float* out);
void turn_rows(const float* x, int64_t stride, int64_t rows, int64_t size, float* out);
// x (rows, x_row), or turned (size, 64), to rows of out. -0 becomes +0: it would tell of
// skipped masked keys.
template <class T>
void store_rows(const float* x, int64_t x_row, int64_t rows, int64_t size, T* out, int64_t stride);
template <class T>
void store_turned(const float* x, int64_t rows, int64_t size, T* out, int64_t stride);
// out[r] = sum of a * b over each row, in sum_row's order.
template <class T>
void dot_rows(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t rows,
              int64_t size, float* out);

}  // namespace plait::attention
