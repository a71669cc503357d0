// cuda/ptx_sm90.cuh on fibers: hopper.hpp does it.
#pragma once
#include <cstdint>

#include "cuda.h"
#include "cuda_runtime.h"
#include "hopper.hpp"

namespace plait {

inline uint32_t shared_address(const void* p) { return hopper::address_of(p); }
inline unsigned cluster_rank() { return fibers::cluster_rank(); }
inline void cluster_sync() { fibers::sync_cluster(); }
inline void sync_some(int barrier, int threads) { fibers::sync_named(barrier, threads); }

inline void barrier_init(uint32_t barrier, unsigned arrivals) { hopper::barrier_init(barrier, arrivals); }
inline void fence_barrier_init() {}
inline void barrier_expect(uint32_t barrier, unsigned bytes) { hopper::barrier_arrive(barrier, -1, bytes); }
inline void barrier_arrive(uint32_t barrier, unsigned rank) { hopper::barrier_arrive(barrier, int(rank), 0); }
inline void barrier_wait(uint32_t barrier, unsigned parity) { hopper::barrier_wait(barrier, parity); }

inline void tma_prefetch(const CUtensorMap&) {}
inline void tma_load(uint32_t to, const CUtensorMap& map, int x, int y, int z, uint32_t barrier) {
  hopper::tma_load(1u << fibers::cluster_rank(), to, map, x, y, z, barrier);
}
inline void tma_load_to(uint16_t ranks, uint32_t to, const CUtensorMap& map, int x, int y, int z, uint32_t barrier) {
  hopper::tma_load(ranks, to, map, x, y, z, barrier);
}
inline void tma_store(const CUtensorMap& map, int x, int y, int z, uint32_t from) { hopper::tma_store(map, x, y, z, from); }
inline void tma_store_commit() { hopper::tma_store_commit(); }
template <int LEFT>
void tma_store_wait_read() {
  hopper::tma_store_wait(LEFT);
}
inline void tma_store_wait() { hopper::tma_store_wait(0); }
inline void fence_async_shared() {}
inline void fence_async_global() {}

inline void store_matrices(uint32_t row, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  const auto& rows = fibers::exchange(0xffffffffu, "stmatrix", &row, sizeof row);
  const uint32_t values[4] = {m0, m1, m2, m3};
  const int lane = fibers::thread_index() % 32;
  for (int m = 0; m < 4; m++)
    std::memcpy(hopper::at(fiber_lane<uint32_t>(rows, m * 8 + lane / 4)) + lane % 4 * 4, &values[m], 4);
}
template <int N>
void fewer_registers() {}
template <int N>
void more_registers() {}

}  // namespace plait
