// What tells whether two ranks hold the same bits, without sending them.
#include <atomic>

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

}  // namespace

uint64_t fingerprint(const ConstArray& x, int64_t first_index) {
  PLAIT_CHECK(x.contiguous() && (x.dtype == DType::float32 || x.dtype == DType::bfloat16), "fingerprint",
              "needs contiguous float32 or bfloat16, got ", shape_text(x));
  return x.dtype == DType::float32 ? fingerprint_of<uint32_t>(x, first_index) : fingerprint_of<uint16_t>(x, first_index);
}

}  // namespace plait
