// Kernels of attention_block.hpp. Products keep tiles of 6 x 64 (AVX-512) or 6 x 16 (AVX2)
// accumulators in registers.
#include "cpu/attention_block.hpp"

#include <algorithm>

#include "cpu/math.hpp"
#include "cpu/transpose.hpp"
#include "cpu/vec.hpp"

namespace plait::attention {
namespace {

// --- products
// --------------------------------------------------------------------------------------

// M rows x N vectors of the output, in registers while k runs.
template <class V, int M, int N>
PLAIT_INLINE void tile(const Product& p, int64_t row, int64_t column) {
  V c[M][N];
  float* out = p.c + row * p.c_row + column;
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      c[m][n] = all<V>(0.0f);
      if (p.accumulate) c[m][n] = load<V>(out + m * p.c_row + n * WIDTH<V>);
      if (p.factor) c[m][n] *= load<V>(p.factor + column + n * WIDTH<V>);
    }
  }
  const float *a = p.a + row * p.a_row, *b = p.b + column;
  const int64_t a_row = p.a_row, a_step = p.a_step, b_row = p.b_row;
  for (int64_t k = 0; k < p.depth; k++, a += a_step, b += b_row) {
    V y[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) y[n] = load<V>(b + n * WIDTH<V>);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const V x = all<V>(a[m * a_row]);
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) c[m][n] = fma(x, y[n], c[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) store(out + m * p.c_row + n * WIDTH<V>, c[m][n]);
  }
}

template <class V, int M, int N>
PLAIT_INLINE void tile_column(const Product& p, int64_t column) {
  int64_t row = 0;
  for (; row + M <= p.rows; row += M) tile<V, M, N>(p, row, column);
  if (M > 4)
    for (; row + 4 <= p.rows; row += 4) tile<V, 4, N>(p, row, column);
  for (; row < p.rows; row++) tile<V, 1, N>(p, row, column);
}

template <class V>
PLAIT_INLINE void multiply_body(const Product* p) {
  constexpr int N = WIDTH<V> == 16 ? 4 : 2, M = WIDTH<V> > 4 ? 6 : 4;  // of 32, 16 and 16 registers
  int64_t column = 0;
  for (; column + N * WIDTH<V> <= p->columns; column += N * WIDTH<V>)
    tile_column<V, M, N>(*p, column);
  for (; column < p->columns; column += WIDTH<V>) tile_column<V, 2 * M, 1>(*p, column);
}
PLAIT_VECTOR_KERNEL(multiply_kernel, multiply_body)

// --- softmax
// -----------------------------------------------------------------------------------------

template <class V, class T>
PLAIT_INLINE void softmax_step_body(float* scores, int64_t keys, int64_t queries, float scale,
                                    float last, float* peak, float* sum, float* factor, T* out) {
  for (int64_t q = 0; q < queries; q += WIDTH<V>) {
    const V before = load<V>(peak + q), seen = lane_numbers<V>() + (last + float(q));
    V top = before;
    for (int64_t k = 0; k < keys; k++) {
      float* at = scores + k * QUERIES + q;
      const V score = load<V>(at) * scale;
      const V x = seen < float(k) ? all<V>(-math::INF) : score;
      top = max(x, top);  // skips NaN, which the exponentials bring into the sum
      store(at, x);
    }
    const V base = top == -math::INF ? all<V>(0.0f) : top;
    V total = all<V>(0.0f);
    for (int64_t k = 0; k < keys; k++) {
      const int64_t at = k * QUERIES + q;
      const V p = math::exp(load<V>(scores + at) - base);
      total += p;
      store(out + at, p);
    }
    const V f = math::exp(before - base);
    store(factor + q, f);
    store(sum + q, fma(load<V>(sum + q), f, total));
    store(peak + q, top);
  }
}
PLAIT_VECTOR_KERNEL(softmax_step_kernel, softmax_step_body)

template <class V, class T>
PLAIT_INLINE void softmax_backward_body(const float* scores, const float* grads, int64_t keys,
                                        int64_t queries, float scale, float last,
                                        const float* log_sum, const float* delta, T* out,
                                        T* grads_out) {
  for (int64_t q = 0; q < queries; q += WIDTH<V>) {
    const V logs = load<V>(log_sum + q), deltas = load<V>(delta + q);
    const V seen = lane_numbers<V>() + (last + float(q));
    for (int64_t k = 0; k < keys; k++) {
      const int64_t at = k * QUERIES + q;
      const V e = math::exp(load<V>(scores + at) * scale - logs);
      const V p = seen < float(k) ? all<V>(0.0f) : e;
      const V ds = p * (load<V>(grads + at) - deltas) * scale;
      store(out + at, p);
      store(grads_out + at, ds);
    }
  }
}
PLAIT_VECTOR_KERNEL(softmax_backward_kernel, softmax_backward_body)

template <class V>
PLAIT_INLINE void scale_body(float* x, int64_t rows, int64_t queries, const float* factor) {
  for (int64_t r = 0; r < rows; r++, x += QUERIES)
    for (int64_t q = 0; q < queries; q += WIDTH<V>)
      store(x + q, load<V>(x + q) * load<V>(factor + q));
}
PLAIT_VECTOR_KERNEL(scale_kernel, scale_body)

template <class V>
PLAIT_INLINE void softmax_end_body(float* out, int64_t size, const float* peak, const float* sum,
                                   float* log_sum) {
  for (int64_t q = 0; q < QUERIES; q += WIDTH<V>) {
    const V total = load<V>(sum + q);
    const V inverse = total == 0.0f ? all<V>(0.0f) : 1.0f / total;
    for (int64_t r = 0; r < size; r++)
      store(out + r * QUERIES + q, load<V>(out + r * QUERIES + q) * inverse);
  }
  for (int64_t q = 0; q < QUERIES; q++) log_sum[q] = peak[q] + math::log(sum[q]);
}
PLAIT_VECTOR_KERNEL(softmax_end_kernel, softmax_end_body)

// --- moving rows
// ---------------------------------------------------------------------------------------

template <class V>
PLAIT_INLINE void copy_body(const float* x, int64_t stride, int64_t rows, int64_t size,
                            float* out) {
  for (int64_t r = 0; r < rows; r++, x += stride, out += padded(size)) {
    int64_t i = 0;
    for (; i + WIDTH<V> <= size; i += WIDTH<V>) store(out + i, load<V>(x + i));
    for (; i < padded(size); i += WIDTH<V>)
      store(out + i, load<V>(x + i, std::max<int64_t>(size - i, 0)));
  }
}
PLAIT_VECTOR_KERNEL(copy_kernel, copy_body)

// A row's vector at a time: rows may lie so far apart that they share few places of the cache.
template <class V>
PLAIT_INLINE void turn_body(const float* x, int64_t stride, int64_t rows, int64_t size,
                            float* out) {
  if (rows < QUERIES) std::fill_n(out, size * QUERIES, 0.0f);
  for (int64_t i = 0; i < size; i += WIDTH<V>) {
    const int64_t count = std::min(WIDTH<V>, size - i);
    for (int64_t r = 0; r < rows; r++) {
      float part[WIDTH<V>];
      store(part, load<V>(x + r * stride + i, count));
      for (int64_t l = 0; l < count; l++) out[(i + l) * QUERIES + r] = part[l];
    }
  }
}
PLAIT_VECTOR_KERNEL(turn_kernel, turn_body)

template <class V, class T>
PLAIT_INLINE void store_body(const float* x, int64_t x_row, int64_t rows, int64_t size, T* out,
                             int64_t stride) {
  for (int64_t r = 0; r < rows; r++, x += x_row, out += stride)
    for (int64_t i = 0; i < size; i += WIDTH<V>) store(out + i, load<V>(x + i) + 0.0f, size - i);
}
PLAIT_VECTOR_KERNEL(store_kernel, store_body)

// Eight floats, rounded as store() does.
PLAIT_INLINE void store_words(float* to, Word8 x) {
  store(to, Floats8(x) + 0.0f);
}
PLAIT_INLINE void store_words(bfloat16* to, Word8 x) {
  const Floats8 f = Floats8(x) + 0.0f;
  const Word8 u = Word8(f), rounded = u + 0x7fffu + ((u >> 16) & 1u), nan = u | 0x400000u;
  const Short8 s = __builtin_convertvector((f == f ? rounded : nan) >> 16, Short8);
  std::memcpy(to, &s, sizeof(s));
}

template <class V, class T>
PLAIT_INLINE void store_turned_body(const float* x, int64_t rows, int64_t size, T* out,
                                    int64_t stride) {
  const int64_t whole = rows / 8 * 8, wide = size / 8 * 8;
  for (int64_t r = 0; r < whole; r += 8)
    for (int64_t i = 0; i < wide; i += 8) {  // eight by eight
      Word8 words[8];
#pragma GCC unroll 8
      for (int l = 0; l < 8; l++) std::memcpy(&words[l], x + (i + l) * QUERIES + r, 32);
      transpose(words);
#pragma GCC unroll 8
      for (int l = 0; l < 8; l++) store_words(out + (r + l) * stride + i, words[l]);
    }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = r < whole ? wide : 0; i < size; i++)
      out[r * stride + i] = from_float<T>(x[i * QUERIES + r] + 0.0f);
}
PLAIT_VECTOR_KERNEL(store_turned_kernel, store_turned_body)

template <class T>
struct Dot {
  const T *a, *b;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    return load<V>(a + i, count) * load<V>(b + i, count);
  }
};

template <class V, class T>
PLAIT_INLINE void dot_body(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t rows,
                           int64_t size, float* out) {
  for (int64_t r = 0; r < rows; r++)
    out[r] = sum_row<V>(size, Dot<T>{a + r * a_stride, b + r * b_stride});
}
PLAIT_VECTOR_KERNEL(dot_kernel, dot_body)

}  // namespace

void multiply(const Product& p) {
  multiply_kernel(&p);
}

template <class T>
void softmax_step(float* scores, int64_t keys, int64_t queries, float scale, float last,
                  float* peak, float* sum, float* factor, T* out) {
  softmax_step_kernel(scores, keys, queries, scale, last, peak, sum, factor, out);
}

template <class T>
void softmax_backward(const float* scores, const float* grads, int64_t keys, int64_t queries,
                      float scale, float last, const float* log_sum, const float* delta, T* out,
                      T* grads_out) {
  softmax_backward_kernel(scores, grads, keys, queries, scale, last, log_sum, delta, out,
                          grads_out);
}

void scale_columns(float* x, int64_t rows, int64_t queries, const float* factor) {
  scale_kernel(x, rows, queries, factor);
}

void softmax_end(float* out, int64_t size, const float* peak, const float* sum, float* log_sum) {
  softmax_end_kernel(out, size, peak, sum, log_sum);
}

void copy_rows(const float* x, int64_t stride, int64_t rows, int64_t size, float* out) {
  copy_kernel(x, stride, rows, size, out);
}
void turn_rows(const float* x, int64_t stride, int64_t rows, int64_t size, float* out) {
  turn_kernel(x, stride, rows, size, out);
}
template <class T>
void store_rows(const float* x, int64_t x_row, int64_t rows, int64_t size, T* out,
                int64_t stride) {
  store_kernel(x, x_row, rows, size, out, stride);
}
template <class T>
void store_turned(const float* x, int64_t rows, int64_t size, T* out, int64_t stride) {
  store_turned_kernel(x, rows, size, out, stride);
}
template <class T>
void dot_rows(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t rows,
              int64_t size, float* out) {
  dot_kernel(a, a_stride, b, b_stride, rows, size, out);
}

#define PLAIT_ROWS(T)                                                                      \
  template void softmax_step(float*, int64_t, int64_t, float, float, float*, float*, float*, T*); \
  template void softmax_backward(const float*, const float*, int64_t, int64_t, float, float,      \
                                 const float*, const float*, T*, T*);                             \
  template void store_rows(const float*, int64_t, int64_t, int64_t, T*, int64_t);                 \
  template void store_turned(const float*, int64_t, int64_t, T*, int64_t);                        \
  template void dot_rows(const T*, int64_t, const T*, int64_t, int64_t, int64_t, float*);
PLAIT_ROWS(float)
PLAIT_ROWS(bfloat16)
#undef PLAIT_ROWS

}  // namespace plait::attention
