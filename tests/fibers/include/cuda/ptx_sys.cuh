// cuda/ptx_sys.cuh on fibers: ranks are threads or processes of the CPU, so these are its atomics.
#pragma once
#include <chrono>
#include <cstdint>

#include "cuda_runtime.h"

#define PLAIT_APART __attribute__((noinline))

namespace plait {

inline uint32_t load_relaxed_sys(const uint32_t* from) { return __atomic_load_n(from, __ATOMIC_RELAXED); }
inline void store_relaxed_sys(uint32_t* to, uint32_t x) { __atomic_store_n(to, x, __ATOMIC_RELAXED); }
inline void store_release_sys(uint32_t* to, uint32_t x) { __atomic_store_n(to, x, __ATOMIC_RELEASE); }
inline void acquire_sys() { __atomic_thread_fence(__ATOMIC_ACQ_REL); }
inline bool claim(uint32_t* word, uint32_t x) {
  uint32_t nothing = 0;
  return __atomic_compare_exchange_n(word, &nothing, x, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

inline uint64_t nanoseconds() {
  using namespace std::chrono;
  return uint64_t(duration_cast<std::chrono::nanoseconds>(steady_clock::now().time_since_epoch()).count());
}

inline void spin() { fibers::spin(); }

}  // namespace plait
