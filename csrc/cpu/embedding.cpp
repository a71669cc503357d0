// Rows of a table by token, and their gradients: per row one chain of additions in token order,
// without atomics.
#include <algorithm>
#include <cstring>

#include "core/ops.hpp"
#include "cpu/expect.hpp"
#include "cpu/threads.hpp"
#include "cpu/vec.hpp"

namespace plait {
namespace {

template <class V, class T>
PLAIT_INLINE void add_body(const T* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += WIDTH<V>)
    store(out + i, load<V>(out + i, n - i) + load<V>(x + i, n - i), n - i);
}
PLAIT_VECTOR_KERNEL(add_row, add_body)

}  // namespace

void embedding_forward(const ConstArray& tokens, const ConstArray& weight, int64_t first_row,
                       const Array& out) {
  const char* call = "embedding_forward";
  expect_ndim(call, "tokens", tokens, 1);
  expect_ndim(call, "weight", weight, 2);
  const int64_t count = tokens.shape[0], rows = weight.shape[0], channels = weight.shape[1];
  expect_array(call, "tokens", tokens, DType::int32, {count});
  expect_float(call, "weight", weight);
  expect_contiguous(call, "weight", weight);
  expect_array(call, "out", out, weight.dtype, {count, channels});
  const size_t bytes = size_t(channels * size_of(weight.dtype));
  const auto* source = static_cast<const char*>(weight.data);
  auto* target = const_cast<char*>(static_cast<const char*>(out.data));
  const int32_t* token = tokens.as<int32_t>();
  parallel_for(count, 1 + 16384 / (channels + 1), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = token[i] - first_row;
      if (row >= 0 && row < rows)
        std::memcpy(target + i * bytes, source + row * bytes, bytes);
      else
        std::memset(target + i * bytes, 0, bytes);
    }
  });
}

// Threads take disjoint ranges of columns, so frequent tokens do not fall to one of them.
void embedding_backward(const ConstArray& tokens, const ConstArray& grad, int64_t first_row,
                        bool accumulate, const Array& grad_weight) {
  const char* call = "embedding_backward";
  expect_ndim(call, "tokens", tokens, 1);
  expect_ndim(call, "grad_weight", grad_weight, 2);
  const int64_t count = tokens.shape[0], rows = grad_weight.shape[0],
                channels = grad_weight.shape[1];
  expect_array(call, "tokens", tokens, DType::int32, {count});
  expect_array(call, "grad", grad, grad.dtype, {count, channels});
  expect_array(call, "grad_weight", grad_weight, DType::float32, {rows, channels});
  const int32_t* token = tokens.as<int32_t>();
  float* out = grad_weight.as<float>();
  if (!accumulate)
    parallel_for(rows, 1 + 65536 / (channels + 1), [=](int64_t begin, int64_t end) {
      std::fill(out + begin * channels, out + end * channels, 0.0f);
    });
  PLAIT_FLOATS(grad.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    const T* grad_data = grad.as<T>();
    constexpr int64_t STRIP = 64;
    parallel_for(
        (channels + STRIP - 1) / STRIP, 1 + 16384 / (STRIP * (count + 1)),
        [=](int64_t begin, int64_t end) {
          const int64_t first = begin * STRIP, width = std::min(end * STRIP, channels) - first;
          for (int64_t i = 0; i < count; i++) {
            const int64_t row = token[i] - first_row;
            if (row >= 0 && row < rows)
              add_row(grad_data + i * channels + first, width, out + row * channels + first);
          }
        });
  });
}

}  // namespace plait
