// Softmax cross-entropy over a sharded vocabulary. A shard knows (peak, sum of exp(logit - peak));
// pairs merge in the tree. Sums over a row are sum_row's fixed lanes by column of the shard.
// Padding columns are never read. NaN and +infinity reach the loss as NaN: a peak skips NaN, but
// exp(NaN - peak) and exp(inf - inf) are in the sum.
#include <algorithm>

#include "core/ops.hpp"
#include "cpu/math.hpp"
#include "cpu/threads.hpp"
#include "cpu/vec.hpp"

#include "core/cross_entropy.hpp"

namespace plait {
namespace {

template <class T>
struct Exponential {
  const T* x;
  float base;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    return math::exp(load<V>(x + i, count) - base);
  }
};

template <class T>
struct Gradient {
  const T* x;
  float base, scale;
  template <class V>
  PLAIT_INLINE V at(int64_t i, int64_t count) const {
    return math::exp(load<V>(x + i, count) - base) * scale;
  }
};

template <class V, class T>
PLAIT_INLINE void statistics_body(const T* logits, int64_t rows, int64_t stride, int64_t columns,
                                  float* peak, float* sum) {
  for (int64_t r = 0; r < rows; r++, logits += stride) {
    peak[r] = max_row<V>(columns, Value<T>{logits});
    sum[r] = sum_row<V>(columns, Exponential<T>{logits, base_of(peak[r])});
  }
}
PLAIT_VECTOR_KERNEL(statistics_rows, statistics_body)

constexpr int STACK = 64;

// The tree merge of rows begin .. end, parts (n, 2, rows): a stack of vectors of rows.
template <class V>
PLAIT_INLINE void merge_body(const float* parts, const int* merges, int64_t n, int64_t rows,
                             int64_t begin, int64_t end, float* out) {
  V peaks[STACK], sums[STACK];
  for (int64_t r = begin; r < end; r += WIDTH<V>) {
    int top = 0;
    for (int64_t i = 0; i < n; i++) {
      peaks[top] = load<V>(parts + 2 * i * rows + r, end - r);
      sums[top++] = load<V>(parts + (2 * i + 1) * rows + r, end - r);
      for (int m = 0; m < merges[i]; m++) {
        top--;
        merge_sums(peaks[top - 1], sums[top - 1], peaks[top], sums[top]);
      }
    }
    store(out + r, peaks[0], end - r);
    store(out + rows + r, sums[0], end - r);
  }
}
PLAIT_VECTOR_KERNEL(merge_rows, merge_body)

template <class V, class T>
PLAIT_INLINE void backward_body(const T* logits, int64_t columns, float base, float scale,
                                T* grad) {
  fill_row<V>(columns, grad, Gradient<T>{logits, base, scale});
}
PLAIT_VECTOR_KERNEL(backward_row, backward_body)

int64_t grain_of(int64_t columns) {
  return 1 + 8192 / (columns + 1);
}

}  // namespace

void cross_entropy_statistics(const ConstArray& logits, const ConstArray& targets,
                              int64_t first_column, int64_t vocabulary, const Array& peak,
                              const Array& sum, const Array& target_logit) {
  const char* call = "cross_entropy_statistics";
  check_cross_entropy_rows(call, logits, targets, peak, sum);
  const int64_t rows = logits.shape[0], columns = logits.shape[1], stride = logits.strides[0];
  expect_array(call, "target_logit", target_logit, DType::float32, {rows});
  const int64_t real = real_columns(first_column, columns, vocabulary);
  const int32_t* target = targets.as<int32_t>();
  for (int64_t r = 0; r < rows; r++)
    PLAIT_CHECK(target[r] < vocabulary, call, "targets[", r, "] is ", target[r],
                ", beyond the vocabulary of ", vocabulary);
  float *peak_data = peak.as<float>(), *sum_data = sum.as<float>(),
        *picked = target_logit.as<float>();
  PLAIT_FLOATS(logits.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    const T* x = logits.as<T>();
    parallel_for(rows, grain_of(columns), [=](int64_t begin, int64_t end) {
      statistics_rows(x + begin * stride, end - begin, stride, real, peak_data + begin,
                      sum_data + begin);
      for (int64_t r = begin; r < end; r++) {
        const int64_t column = target[r] - first_column;
        if (target[r] >= 0 && column >= 0 && column < real)
          picked[r] = to_float(x[r * stride + column]);
      }
    });
  });
}

void cross_entropy_merge(const ConstArray& parts, const std::vector<int>& merges,
                         const Array& out) {
  check_cross_entropy_merge(parts, merges, out, STACK);
  const int64_t n = parts.shape[0], rows = parts.shape[2];
  const float* in = parts.as<float>();
  float* merged = out.as<float>();
  parallel_for(rows, 1024, [&](int64_t begin, int64_t end) {
    merge_rows(in, merges.data(), n, rows, begin, end, merged);
  });
}

void cross_entropy_loss(const ConstArray& peak, const ConstArray& sum,
                        const ConstArray& target_logit, const ConstArray& targets,
                        const Array& losses) {
  check_cross_entropy_loss(peak, sum, target_logit, targets, losses);
  const int64_t rows = losses.shape[0];
  const float *m = peak.as<float>(), *s = sum.as<float>(), *t = target_logit.as<float>();
  const int32_t* target = targets.as<int32_t>();
  float* loss = losses.as<float>();
  for (int64_t r = 0; r < rows; r++)
    loss[r] = loss_of(m[r], s[r], t[r], target[r]);
}

void cross_entropy_backward(const ConstArray& logits, const ConstArray& targets,
                            const ConstArray& peak, const ConstArray& sum, int64_t first_column,
                            int64_t vocabulary, float scale, const Array& grad_logits) {
  const char* call = "cross_entropy_backward";
  check_cross_entropy_backward(logits, targets, peak, sum, grad_logits);
  const int64_t rows = logits.shape[0], columns = logits.shape[1];
  const int64_t real = real_columns(first_column, columns, vocabulary);
  const int32_t* target = targets.as<int32_t>();
  const float *peak_data = peak.as<float>(), *sum_data = sum.as<float>();
  PLAIT_FLOATS(logits.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    const T* x = logits.as<T>();
    T* grad = grad_logits.as<T>();
    parallel_for(rows, grain_of(columns), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        const T* row = x + r * columns;
        T* out = grad + r * columns;
        const int64_t used = target[r] < 0 ? 0 : real, column = target[r] - first_column;
        const bool here = column >= 0 && column < used;
        const float base = base_of(peak_data[r]), inverse = scale / sum_data[r];
        const float logit =
            here ? to_float(row[column]) : 0.0f;  // before grad, which may be the same memory
        backward_row(row, used, base, inverse, out);
        if (here) out[column] = from_float<T>(math::exp(logit - base) * inverse - scale);
        std::fill(out + used, out + columns, T{});
      }
    });
  });
}

}  // namespace plait
