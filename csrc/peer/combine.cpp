#include "peer/combine.hpp"

#include <algorithm>
#include <cstring>

#include "core/ops.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t BLOCK = 4096;  // elements that stay in cache: widened, or on their way to several places
constexpr int64_t WORTH_A_THREAD = 32768;

// The sum of two parts to two places. They are equal or apart, so no element depends on an earlier one.
template <class X, class Y>
PLAIT_INLINE void pair_body(const X* a, const X* b, Y* first, Y* second, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; i++) {
    const Y y = from_float<Y>(to_float(a[i]) + to_float(b[i]));
    first[i] = y;
    second[i] = y;
  }
}
PLAIT_KERNEL(pair_run, pair_body)

ConstArray view(const void* data, DType dtype, int64_t rows, int64_t columns) {
  ConstArray a;
  a.data = data, a.dtype = dtype, a.ndim = 2;
  a.shape[0] = rows, a.shape[1] = columns;
  a.strides[0] = columns, a.strides[1] = 1;
  return a;
}

Array writable(void* data, DType dtype, int64_t rows, int64_t columns) {
  Array a;
  static_cast<ConstArray&>(a) = view(data, dtype, rows, columns);
  return a;
}

// Rows of float32 parts, all with the same bias from its element `column` on.
void sum_rows_of_parts(const std::vector<const char*>& parts, const std::vector<int>& merges,
                       const std::optional<ConstArray>& bias, int64_t column, DType out_type, char* out,
                       int64_t first, int64_t rows, int64_t columns) {
  std::vector<ConstArray> views;
  views.reserve(parts.size());
  for (const char* part : parts) views.push_back(view(part + 4 * first, DType::float32, rows, columns));
  std::optional<ConstArray> added;
  if (bias) {
    added = view(static_cast<const float*>(bias->data) + column, DType::float32, 1, columns);
    added->ndim = 1, added->shape[0] = columns, added->strides[0] = 1;
  }
  tree_sum(views, merges, added, writable(out + size_of(out_type) * first, out_type, rows, columns));
}

void sum_float32(const std::vector<const char*>& parts, const std::vector<int>& merges,
                 const std::optional<ConstArray>& bias, int64_t column, DType out_type, char* out, int64_t n) {
  const int64_t length = bias ? bias->size() : n;
  column = bias ? column % length : 0;
  for (int64_t first = 0; first < n;) {  // the rest of a row, whole rows, the start of a row
    const int64_t columns = std::min(n - first, length - column);
    const int64_t rows = columns == length ? (n - first) / length : 1;
    sum_rows_of_parts(parts, merges, bias, column, out_type, out, first, rows, columns);
    first += rows * columns;
    column = 0;
  }
}

void sum_bfloat16(const std::vector<const char*>& parts, const std::vector<int>& merges,
                  const std::optional<ConstArray>& bias, int64_t column, DType out_type, char* out, int64_t n) {
  const int64_t width = std::min(n, BLOCK);
  std::vector<float> wide(parts.size() * size_t(width));
  std::vector<const char*> widened(parts.size());
  for (int64_t first = 0; first < n; first += width) {
    const int64_t count = std::min(width, n - first);
    for (size_t i = 0; i < parts.size(); i++) {
      float* row = wide.data() + int64_t(i) * width;
      convert(view(parts[i] + 2 * first, DType::bfloat16, 1, count), writable(row, DType::float32, 1, count));
      widened[i] = reinterpret_cast<const char*>(row);
    }
    sum_float32(widened, merges, bias, column + first, out_type, out + size_of(out_type) * first, count);
  }
}

template <class T>
void integers(const std::vector<const char*>& parts, Reduce op, char* out, int64_t n) {
  using U = std::make_unsigned_t<T>;  // sums wrap around, as numpy's and MPI's do
  T* y = reinterpret_cast<T*>(out);
  parallel_for(n, 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      T value = reinterpret_cast<const T*>(parts[0])[i];
      for (size_t p = 1; p < parts.size(); p++) {
        const T other = reinterpret_cast<const T*>(parts[p])[i];
        value = op == Reduce::sum ? T(U(value) + U(other)) : op == Reduce::max ? std::max(value, other)
                                                                                : std::min(value, other);
      }
      y[i] = value;
    }
  });
}

void to_one_place(const std::vector<const char*>& parts, const std::vector<int>& merges, DType in, Reduce op,
                  const std::optional<ConstArray>& bias, int64_t column, DType out_type, char* out, int64_t n) {
  switch (in) {
    case DType::float32: return sum_float32(parts, merges, bias, column, out_type, out, n);
    case DType::bfloat16: return sum_bfloat16(parts, merges, bias, column, out_type, out, n);
    case DType::int8: return integers<int8_t>(parts, op, out, n);
    case DType::int16: return integers<int16_t>(parts, op, out, n);
    case DType::int32: return integers<int32_t>(parts, op, out, n);
    case DType::int64: return integers<int64_t>(parts, op, out, n);
    case DType::uint8: return integers<uint8_t>(parts, op, out, n);
    case DType::uint16: return integers<uint16_t>(parts, op, out, n);
    case DType::uint32: return integers<uint32_t>(parts, op, out, n);
    case DType::uint64: return integers<uint64_t>(parts, op, out, n);
    default: fail("combine", "no reduction of ", name_of(in));
  }
}

}  // namespace

void combine(const std::vector<const char*>& parts, const std::vector<int>& merges, DType in, Reduce op,
             const std::optional<ConstArray>& bias, int64_t column, DType out_type, const std::vector<char*>& outs,
             int64_t n) {
  if (n == 0) return;
  reset_rounding();
  const bool alike = in == out_type && (in == DType::float32 || in == DType::bfloat16);
  if (parts.size() == 2 && outs.size() <= 2 && alike && !bias) {
    PLAIT_FLOATS(in, "combine", [&](auto zero) {
      using X = decltype(zero);
      parallel_for(n, WORTH_A_THREAD, [&](int64_t begin, int64_t end) {
        pair_run(reinterpret_cast<const X*>(parts[0]) + begin, reinterpret_cast<const X*>(parts[1]) + begin,
                 reinterpret_cast<X*>(outs[0]) + begin, reinterpret_cast<X*>(outs.back()) + begin, end - begin);
      });
    });
    return;
  }
  if (outs.size() == 1) return to_one_place(parts, merges, in, op, bias, column, out_type, outs[0], n);
  const int64_t item = size_of(in), out_item = size_of(out_type);
  parallel_for(n, WORTH_A_THREAD, [&](int64_t begin, int64_t end) {
    std::vector<const char*> here(parts.size());
    for (int64_t first = begin; first < end; first += BLOCK) {
      const int64_t count = std::min(BLOCK, end - first);
      for (size_t i = 0; i < parts.size(); i++) here[i] = parts[i] + first * item;
      char* out = outs[0] + first * out_item;
      to_one_place(here, merges, in, op, bias, column + first, out_type, out, count);
      for (size_t j = 1; j < outs.size(); j++) std::memcpy(outs[j] + first * out_item, out, size_t(count * out_item));
    }
  });
}

void copy_bytes(void* out, const void* x, int64_t n) {
  char* y = static_cast<char*>(out);
  const char* from = static_cast<const char*>(x);
  if (n < (1 << 20)) {
    if (n > 0) std::memcpy(y, from, size_t(n));
    return;
  }
  parallel_for(n, 1 << 19, [&](int64_t begin, int64_t end) { std::memcpy(y + begin, from + begin, size_t(end - begin)); });
}

}  // namespace plait
