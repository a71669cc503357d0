// What tells whether two ranks hold the same bits, without sending them.
#include <algorithm>
#include <atomic>
#include <utility>

#include "core/ops.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t WORTH_A_THREAD = 1 << 16;  // elements

// The finalizer of splitmix64 (Steele, Lea, Flood 2014): every bit of z moves half of the result's.
PLAIT_INLINE uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

template <class Bits>
PLAIT_INLINE void fingerprint_body(const Bits* x, int64_t n, uint64_t first, uint64_t* sum) {
  uint64_t total = 0;
  for (int64_t i = 0; i < n; i++) total += mixed((first + uint64_t(i)) * 0x9e3779b97f4a7c15u + mixed(x[i] + uint64_t(1)));
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
  for (int64_t i = 0; i < n; i++) total += weights[i] * mixed(x[i] + uint64_t(1));
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
  const int64_t item = size_of(x.dtype);
  const bool rows_contiguous = x.size() == 0 || x.shape[1] == 1 || x.strides[1] == 1;
  PLAIT_CHECK(x.ndim == 2 && rows_contiguous && (item == 2 || item == 4), "weighted_bits",
              "needs (R, C) of 2 or 4 bytes an element, rows contiguous, got ", shape_text(x));
  for (const auto& [weights, n] : {std::pair(&rows, x.shape[0]), std::pair(&columns, x.shape[1])})
    PLAIT_CHECK(weights->dtype == DType::uint64 && weights->ndim == 1 && weights->contiguous() && weights->shape[0] == n,
                "weighted_bits", "needs a uint64 for each row and column of ", shape_text(x));
  auto a = static_cast<const uint64_t*>(rows.data), b = static_cast<const uint64_t*>(columns.data);
  return item == 4 ? weighted_of<uint32_t>(x, a, b) : weighted_of<uint16_t>(x, a, b);
}

uint64_t fingerprint(const ConstArray& x, int64_t first_index) {
  PLAIT_CHECK(x.contiguous() && (x.dtype == DType::float32 || x.dtype == DType::bfloat16), "fingerprint",
              "needs contiguous float32 or bfloat16, got ", shape_text(x));
  return x.dtype == DType::float32 ? fingerprint_of<uint32_t>(x, first_index) : fingerprint_of<uint16_t>(x, first_index);
}

}  // namespace plait
