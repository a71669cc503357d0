// Kernels of attention_block.hpp, on sixteen lanes. Tiles of 4 x 64 accumulators stay in registers while k runs.
#include "cpu/attention_block.hpp"

#include "cpu/math.hpp"
#include "cpu/vec.hpp"

namespace plait::attention {
namespace {

// --- products --------------------------------------------------------------------------------------

template <int M, int N>
PLAIT_INLINE void tile(const Product& p, int64_t row, int64_t column) {
  Lanes c[M][N];
  float* out = p.c + row * p.c_row + column;
#pragma GCC unroll 8
  for (int n = 0; n < N; n++) {
    const Lanes factor = p.factor ? load(p.factor + column + n * LANES) : spread(1.0f);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
      c[m][n] = p.accumulate ? load(out + m * p.c_row + n * LANES) * factor : spread(0.0f);
  }
  const float *a = p.a + row * p.a_row, *b = p.b + column;
  for (int64_t k = 0; k < p.depth; k++, a += p.a_step, b += p.b_row) {
    Lanes y[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) y[n] = load(b + n * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Lanes x = spread(a[m * p.a_row]);
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) c[m][n] = fma(x, y[n], c[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) store(out + m * p.c_row + n * LANES, c[m][n]);
  }
}

template <int N>
PLAIT_INLINE void tile_column(const Product& p, int64_t column) {
  int64_t row = 0;
  for (; row + 4 <= p.rows; row += 4) tile<4, N>(p, row, column);
  for (; row < p.rows; row++) tile<1, N>(p, row, column);
}

PLAIT_INLINE void multiply_body(const Product* p) {
  int64_t column = 0;
  for (; column + 4 * LANES <= p->columns; column += 4 * LANES) tile_column<4>(*p, column);
  for (; column < p->columns; column += LANES) tile_column<1>(*p, column);
}
PLAIT_KERNEL(multiply_kernel, multiply_body)

// --- softmax -----------------------------------------------------------------------------------------

PLAIT_INLINE Lanes exp_lanes(Lanes x) {
  Lanes r;
  for (int i = 0; i < LANES; i++) r[i] = math::exp(x[i]);
  return r;
}

constexpr int N = QUERIES / LANES;

template <bool MASKED>
PLAIT_INLINE void softmax_step_body(float* scores, int64_t keys, float scale, int64_t first_last, float* peak,
                                    float* sum, float* factor) {
  Lanes top[N], total[N];
  IntLanes last[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) {
    top[n] = load(peak + n * LANES);
    last[n] = lane_numbers() + int32_t(first_last + n * LANES);
    total[n] = spread(0.0f);
  }
  for (int64_t k = 0; k < keys; k++) {
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      float* at = scores + k * QUERIES + n * LANES;
      Lanes x = load(at) * scale;
      if (MASKED) x = last[n] >= int32_t(k) ? x : spread(-math::INF);
      top[n] = max(x, top[n]);  // skips NaN, which the exponentials bring into the sum
      store(at, x);
    }
  }
  Lanes base[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) base[n] = top[n] == -math::INF ? spread(0.0f) : top[n];
  for (int64_t k = 0; k < keys; k++) {
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      float* at = scores + k * QUERIES + n * LANES;
      const Lanes p = exp_lanes(load(at) - base[n]);
      total[n] += p;
      store(at, p);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) {
    const Lanes f = exp_lanes(load(peak + n * LANES) - base[n]);
    store(sum + n * LANES, fma(load(sum + n * LANES), f, total[n]));
    store(factor + n * LANES, f);
    store(peak + n * LANES, top[n]);
  }
}
PLAIT_KERNEL(softmax_step_masked, softmax_step_body<true>)
PLAIT_KERNEL(softmax_step_full, softmax_step_body<false>)

template <bool MASKED>
PLAIT_INLINE void softmax_backward_body(float* scores, float* grads, int64_t keys, float scale, int64_t first_last,
                                        const float* log_sum, const float* delta) {
  for (int64_t k = 0; k < keys; k++) {
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      const int64_t at = k * QUERIES + n * LANES;
      Lanes p = exp_lanes(load(scores + at) * scale - load(log_sum + n * LANES));
      if (MASKED) p = lane_numbers() + int32_t(first_last + n * LANES) >= int32_t(k) ? p : spread(0.0f);
      store(scores + at, p);
      store(grads + at, p * (load(grads + at) - load(delta + n * LANES)) * scale);
    }
  }
}
PLAIT_KERNEL(softmax_backward_masked, softmax_backward_body<true>)
PLAIT_KERNEL(softmax_backward_full, softmax_backward_body<false>)

PLAIT_INLINE void divide_body(float* x, int64_t rows, const float* by) {
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) {
    const Lanes divisor = load(by + n * LANES);
    const Lanes inverse = divisor == 0.0f ? spread(0.0f) : 1.0f / divisor;
    for (int64_t r = 0; r < rows; r++) {
      float* at = x + r * QUERIES + n * LANES;
      store(at, load(at) * inverse);
    }
  }
}
PLAIT_KERNEL(divide_kernel, divide_body)

// --- moving rows ---------------------------------------------------------------------------------------

template <class T>
PLAIT_INLINE void copy_body(const T* x, int64_t stride, int64_t rows, int64_t size, float* out) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < size; i += LANES) store(out + r * padded(size) + i, load(x + r * stride + i, size - i));
}
PLAIT_KERNEL(copy_kernel, copy_body)

template <class T>
PLAIT_INLINE void turn_body(const T* x, int64_t stride, int64_t rows, int64_t size, float* out) {
  for (int64_t i = 0; i < size; i++) {
    for (int64_t r = 0; r < rows; r++) out[i * QUERIES + r] = to_float(x[r * stride + i]);
    for (int64_t r = rows; r < QUERIES; r++) out[i * QUERIES + r] = 0.0f;
  }
}
PLAIT_KERNEL(turn_kernel, turn_body)

template <class T>
PLAIT_INLINE void store_body(const float* x, int64_t rows, int64_t size, T* out, int64_t stride) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < size; i += LANES)
      store(out + r * stride + i, load(x + r * padded(size) + i) + 0.0f, size - i);
}
PLAIT_KERNEL(store_kernel, store_body)

template <class T>
PLAIT_INLINE void store_turned_body(const float* x, int64_t rows, int64_t size, T* out, int64_t stride) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < size; i++) out[r * stride + i] = from_float<T>(x[i * QUERIES + r] + 0.0f);
}
PLAIT_KERNEL(store_turned_kernel, store_turned_body)

template <class T>
struct Dot {
  const T *a, *b;
  PLAIT_INLINE Lanes operator()(int64_t i, int64_t count) const { return load(a + i, count) * load(b + i, count); }
};

template <class T>
PLAIT_INLINE void dot_body(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t rows, int64_t size,
                           float* out) {
  for (int64_t r = 0; r < rows; r++) out[r] = sum_row(size, Dot<T>{a + r * a_stride, b + r * b_stride});
}
PLAIT_KERNEL(dot_kernel, dot_body)

}  // namespace

void multiply(const Product& p) { multiply_kernel(&p); }

void softmax_step(float* scores, int64_t keys, float scale, Mask mask, float* peak, float* sum, float* factor) {
  if (mask.any)
    softmax_step_masked(scores, keys, scale, mask.first_last, peak, sum, factor);
  else
    softmax_step_full(scores, keys, scale, mask.first_last, peak, sum, factor);
}

void softmax_backward(float* scores, float* grads, int64_t keys, float scale, Mask mask, const float* log_sum,
                      const float* delta) {
  if (mask.any)
    softmax_backward_masked(scores, grads, keys, scale, mask.first_last, log_sum, delta);
  else
    softmax_backward_full(scores, grads, keys, scale, mask.first_last, log_sum, delta);
}

void divide(float* x, int64_t rows, const float* by) { divide_kernel(x, rows, by); }

template <class T>
void copy_rows(const T* x, int64_t stride, int64_t rows, int64_t size, float* out) {
  copy_kernel(x, stride, rows, size, out);
}
template <class T>
void turn_rows(const T* x, int64_t stride, int64_t rows, int64_t size, float* out) {
  turn_kernel(x, stride, rows, size, out);
}
template <class T>
void store_rows(const float* x, int64_t rows, int64_t size, T* out, int64_t stride) {
  store_kernel(x, rows, size, out, stride);
}
template <class T>
void store_turned(const float* x, int64_t rows, int64_t size, T* out, int64_t stride) {
  store_turned_kernel(x, rows, size, out, stride);
}
template <class T>
void dot_rows(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t rows, int64_t size, float* out) {
  dot_kernel(a, a_stride, b, b_stride, rows, size, out);
}

#define PLAIT_ROWS(T)                                                                          \
  template void copy_rows(const T*, int64_t, int64_t, int64_t, float*);                        \
  template void turn_rows(const T*, int64_t, int64_t, int64_t, float*);                        \
  template void store_rows(const float*, int64_t, int64_t, T*, int64_t);                       \
  template void store_turned(const float*, int64_t, int64_t, T*, int64_t);                     \
  template void dot_rows(const T*, int64_t, const T*, int64_t, int64_t, int64_t, float*);
PLAIT_ROWS(float)
PLAIT_ROWS(bfloat16)
#undef PLAIT_ROWS

}  // namespace plait::attention
