// A pool of threads for one process: parallel_for splits [0, n) into contiguous ranges.
// What a range computes must not depend on where it was cut.
#pragma once
#include <cstdint>
#include <functional>

namespace plait {

// Round to nearest, denormals kept, in this thread. Every op starts so, and every thread of the pool.
void reset_rounding();
// Denormal operands and results become zeros, in this thread, until reset_rounding.
void flush_denormals();
// Whether a result may have become a zero since flush_denormals that on x86-64 is none: there a
// result is tiny if it still is when rounded, with aarch64 if it was before.
bool flushed_too_much();

void set_threads(int threads);
int threads();
// Runs body(begin, end) over disjoint ranges that cover [0, n); ranges hold at least `grain` items.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace plait
