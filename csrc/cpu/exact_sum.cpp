// Sums that no order of additions can change (core/exact.hpp), over chunks summed in float32.
#include "core/exact.hpp"

#include <algorithm>
#include <mutex>

#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t CHUNK = EXACT_CHUNK, LANES = EXACT_LANES;

// Lane l takes elements l, l + 16, ...; then lanes fold in halves: l + (l + 8), l + (l + 4), l + (l
// + 2), l + (l + 1).
PLAIT_INLINE void chunk_sum_body(const float* x, int64_t n, bool squares, float* sum) {
  float lane[LANES] = {};
  int64_t i = 0;
  if (squares) {
    for (; i + LANES <= n; i += LANES)
      for (int l = 0; l < LANES; l++) lane[l] += x[i + l] * x[i + l];
  } else {
    for (; i + LANES <= n; i += LANES)
      for (int l = 0; l < LANES; l++) lane[l] += x[i + l];
  }
  for (int l = 0; i + l < n; l++) lane[l] += squares ? x[i + l] * x[i + l] : x[i + l];
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int l = 0; l < half; l++) lane[l] += lane[l + half];
  *sum = lane[0];
}

PLAIT_KERNEL(chunk_sum, chunk_sum_body)

void add_to_limbs(float x, int64_t* limbs) {
  const LimbTerm term = limb_term(x);
  limbs[term.place] += term.low;
  if (term.high) limbs[term.place + 1] += term.high;
}

}  // namespace

void exact_sum(const ConstArray& x, bool squares, const Array& limbs) {
  check_limbs("exact_sum", limbs);
  PLAIT_CHECK(x.contiguous(), "exact_sum", "x ", shape_text(x), " must be contiguous");
  const float* data = x.as<float>();
  int64_t* total = limbs.as<int64_t>();
  std::mutex mutex;
  const int64_t size = x.size();
  parallel_for((size + CHUNK - 1) / CHUNK, 32, [&](int64_t begin, int64_t end) {
    int64_t mine[LIMBS] = {};
    for (int64_t chunk = begin; chunk < end; chunk++) {
      float sum;
      chunk_sum(data + chunk * CHUNK, std::min(CHUNK, size - chunk * CHUNK), squares, &sum);
      add_to_limbs(sum, mine);
    }
    std::lock_guard<std::mutex> lock(mutex);
    for (int i = 0; i < LIMBS; i++) total[i] += mine[i];
  });
}

double exact_value(const ConstArray& limbs) {
  check_limbs("exact_value", limbs);
  return nearest_double(limbs.as<int64_t>());
}

}  // namespace plait
