// Memory that other GPUs and the host read and write while a kernel runs: words with an order, the clock, and a pause.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#define PLAIT_APART __noinline__  // a function that is called: what is seldom needed takes no registers elsewhere

namespace plait {

// What a thread of another device wrote at some time; nothing is known of what it wrote before.
__device__ __forceinline__ uint32_t load_relaxed_sys(const uint32_t* from) {
  uint32_t x;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
  return x;
}
__device__ __forceinline__ void store_relaxed_sys(uint32_t* to, uint32_t x) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}

// Whoever reads x there, and passes acquire_sys(), sees all that this thread has written or seen before.
__device__ __forceinline__ void store_release_sys(uint32_t* to, uint32_t x) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}
__device__ __forceinline__ void acquire_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// True for the one thread of this device that is first to make a word of 0 one of x.
__device__ __forceinline__ bool claim(uint32_t* word, uint32_t x) { return atomicCAS(word, 0u, x) == 0u; }

__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}

// Between two looks at what another device is to write.
__device__ __forceinline__ void spin() { __nanosleep(20); }

}  // namespace plait
