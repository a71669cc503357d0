// Tiles of a matrix multiplication become out: bias, the one rounding, the places of rows.
#include "cpu/gemm_finish.hpp"

#include "core/array.hpp"
#include "cpu/gemm_operand.hpp"
#include "cpu/vec.hpp"

namespace plait {
namespace {

template <class V, class B, class T>
PLAIT_INLINE void finish_body(const float* tile, int64_t stride, int rows, int columns,
                              const B* bias, T* out, const int64_t* places) {
  for (int i = 0; i < rows; i++, tile += stride) {
    T* row = out + places[i];
    int64_t j = 0;
    for (; j + WIDTH<V> <= columns; j += WIDTH<V>) {
      const V x = load<V>(tile + j);
      store(row + j, bias ? x + load<V>(bias + j) : x);
    }
    for (; j < columns; j++)
      row[j] = from_float<T>(bias ? tile[j] + to_float(bias[j]) : tile[j]);
  }
}
PLAIT_VECTOR_KERNEL(finish, finish_body)

}  // namespace

TileRows::TileRows(const Gemm& g, int slot, int64_t row, int64_t column, int rows) {
  const int64_t offset = slot * g.slot_stride + column;
  if (g.out_rows) {
    Row(*g.out_rows, row).fill(rows, at);
    for (int i = 0; i < rows; i++) at[i] += offset;
  } else {
    for (int i = 0; i < rows; i++) at[i] = (row + i) * g.out_stride + offset;
  }
}

void prefetch_tile(const Gemm& g, const TileRows& places, int rows, int columns) {
  constexpr int64_t LINE = 64;
  const int64_t size = size_of(g.out_dtype), length = columns * size;
  for (int i = 0; i < rows; i++) {
    const char* row = static_cast<const char*>(g.out) + places.at[i] * size;
    for (int64_t line = 0; line < length; line += LINE) __builtin_prefetch(row + line, 1);
  }
}

void finish_tile(const Gemm& g, const float* tile, int64_t stride, int64_t column, int rows,
                 int columns, const TileRows& places) {
  PLAIT_FLOATS(g.out_dtype, "matmul", [&](auto t) {
    PLAIT_FLOATS(g.bias_dtype, "matmul", [&](auto b) {
      using B = decltype(b);
      const B* bias = g.bias ? static_cast<const B*>(g.bias) + column : nullptr;
      finish(tile, stride, rows, columns, bias, static_cast<decltype(t)*>(g.out), places.at);
    });
  });
}

}  // namespace plait
