// The first maximum of each row, or the first NaN: the maximum in one pass, its place in a second, which most rows leave
// early.
#include "core/argmax.hpp"
#include "core/ops.hpp"
#include "cpu/threads.hpp"
#include "cpu/vec.hpp"

namespace plait {
namespace {

// Tests of an element: all bits of its lane, or none.
template <class T>
struct NotBelow {
  const T* x;
  float least;
  template <class V>
  PLAIT_INLINE Uints<V> at(int64_t i) const {
    return ~Uints<V>(load<V>(x + i) < all<V>(least));
  }
  PLAIT_INLINE bool of(int64_t i) const { return !(to_float(x[i]) < least); }
};

template <class T>
struct NotANumber {
  const T* x;
  template <class V>
  PLAIT_INLINE Uints<V> at(int64_t i) const {
    const V v = load<V>(x + i);
    return Uints<V>(v != v);
  }
  PLAIT_INLINE bool of(int64_t i) const { return to_float(x[i]) != to_float(x[i]); }
};

// The first of n elements that passes; n if none does.
template <class V, class Test>
PLAIT_INLINE int64_t find_first(int64_t n, const Test& test) {
  constexpr int64_t TOGETHER = 4;
  int64_t i = 0;
  for (; i + TOGETHER * WIDTH<V> <= n; i += TOGETHER * WIDTH<V>) {
    Uints<V> found = test.template at<V>(i);
#pragma GCC unroll 4
    for (int64_t k = 1; k < TOGETHER; k++) found |= test.template at<V>(i + k * WIDTH<V>);
    uint32_t any = 0;
    for (int64_t l = 0; l < WIDTH<V>; l++) any |= found[l];
    if (any) break;
  }
  while (i < n && !test.of(i)) i++;
  return i;
}

template <class V, class T>
PLAIT_INLINE void argmax_body(const T* x, int64_t rows, int64_t stride, int64_t columns,
                              float* value, int32_t* index) {
  for (int64_t r = 0; r < rows; r++, x += stride) {
    value[r] = -math::INF, index[r] = 0;
    if (columns == 0) continue;
    const float most = max_row<V>(columns, Value<T>{x});  // skips NaN
    int64_t at = find_first<V>(columns, NotBelow<T>{x, most});
    const int64_t nan = at + find_first<V>(columns - at, NotANumber<T>{x + at});
    if (nan < columns) at = nan;
    value[r] = to_float(x[at]), index[r] = int32_t(at);
  }
}
PLAIT_VECTOR_KERNEL(argmax_rows, argmax_body)

}  // namespace

void argmax(const ConstArray& x, int64_t columns, const Array& value, const Array& index) {
  check_argmax(x, columns, value, index);
  const int64_t rows = x.shape[0], stride = x.strides[0];
  float* value_data = value.as<float>();
  int32_t* index_data = index.as<int32_t>();
  PLAIT_FLOATS(x.dtype, "argmax", [&](auto zero) {
    using T = decltype(zero);
    const T* data = x.as<T>();
    parallel_for(rows, 1 + 65536 / (columns + 1), [=](int64_t begin, int64_t end) {
      argmax_rows(data + begin * stride, end - begin, stride, columns, value_data + begin,
                  index_data + begin);
    });
  });
}

}  // namespace plait
