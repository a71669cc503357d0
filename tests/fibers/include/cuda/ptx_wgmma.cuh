// cuda/ptx_wgmma.cuh on fibers: hopper.hpp does it.
#pragma once
#include <cstdint>

#include "cuda_runtime.h"
#include "hopper.hpp"

namespace plait {

inline void wgmma_fence() { hopper::wgmma_fence(); }
inline void wgmma_commit() { hopper::wgmma_commit(); }
template <int LEFT>
void wgmma_wait() {
  hopper::wgmma_wait(LEFT);
}
template <int COUNT>
void wgmma_done(float (&)[COUNT]) {}

template <int N, bool K_MAJOR_A, bool K_MAJOR_B>
struct Wgmma {
  static void multiply(float (&sum)[N / 2], uint64_t a, uint64_t b, int add) {
    hopper::wgmma(sum, N, a, b, add != 0, K_MAJOR_A, K_MAJOR_B);
  }
};

}  // namespace plait
