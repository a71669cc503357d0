// What tells whether two ranks hold the same bits, without sending them.
#include "core/fingerprint.hpp"

#include <algorithm>
#include <atomic>

#include "core/ops.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t WORTH_A_THREAD = 1 << 16;  // elements

template <class Bits>
PLAIT_INLINE void fingerprint_body(const Bits* x, int64_t n, uint64_t first, uint64_t* sum) {
  uint64_t total = 0;
  for (int64_t i = 0; i < n; i++) total += mixed_at(first + uint64_t(i), x[i]);
  *sum = total;
}

PLAIT_KERNEL(fingerprint_run, fingerprint_body)

template <class Bits>
uint64_t fingerprint_of(const ConstArray& x, int64_t first) {
  const Bits* bits = static_cast<const Bits*>(x.data);
  std::atomic<uint64_t> total{0};
  parallel_for(x.size(), WORTH_A_THREAD, [&](int64_t begin, int64_t end) {
    uint64_t sum = 0;
    fingerprint_run(bits + begin, end - begin, uint64_t(first + begin), &sum);
    total += sum;
  });
  return total;
}

template <class Bits>
PLAIT_INLINE void weighted_body(const Bits* x, const uint64_t* weights, int64_t n, uint64_t* sum) {
  uint64_t total = 0;
  for (int64_t i = 0; i < n; i++) total += weights[i] * mixed_bits(x[i]);
  *sum = total;
}

PLAIT_KERNEL(weighted_run, weighted_body)

template <class Bits>
uint64_t weighted_of(const ConstArray& x, const uint64_t* rows, const uint64_t* columns) {
  std::atomic<uint64_t> total{0};
  const int64_t n = x.shape[1];
  parallel_for(x.shape[0], std::max<int64_t>(1, WORTH_A_THREAD / std::max<int64_t>(n, 1)), [&](int64_t begin, int64_t end) {
    uint64_t sum = 0, row = 0;
    for (int64_t r = begin; r < end; r++) {
      weighted_run(static_cast<const Bits*>(x.data) + r * x.strides[0], columns, n, &row);
      sum += rows[r] * row;
    }
    total += sum;
  });
  return total;
}

}  // namespace

uint64_t weighted_bits(const ConstArray& x, const ConstArray& rows, const ConstArray& columns) {
  check_weighted_bits(x, rows, columns);
  auto a = static_cast<const uint64_t*>(rows.data), b = static_cast<const uint64_t*>(columns.data);
  return size_of(x.dtype) == 4 ? weighted_of<uint32_t>(x, a, b) : weighted_of<uint16_t>(x, a, b);
}

uint64_t fingerprint(const ConstArray& x, int64_t first_index) {
  check_fingerprint(x);
  return x.dtype == DType::float32 ? fingerprint_of<uint32_t>(x, first_index) : fingerprint_of<uint16_t>(x, first_index);
}

}  // namespace plait
