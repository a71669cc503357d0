// What compute capability 9.0 adds, by PTX's description of it: barriers that count bytes, TMA, wgmma. What is asynchronous
// there happens here at once, late, or as late as can be (fibers::later): what is not waited for shows.
#pragma once
#include <cstdint>

#include "cuda.h"

namespace hopper {

// An address of shared memory: its offset in the block, and in the upper bits 0 for this block, or 1 + the rank in the cluster.
uint32_t address_of(const void* p);
unsigned char* at(uint32_t address);

void barrier_init(uint32_t barrier, unsigned arrivals);
void barrier_arrive(uint32_t barrier, int rank, unsigned bytes);  // rank -1: this block's
void barrier_wait(uint32_t barrier, unsigned parity);

void tma_load(unsigned ranks, uint32_t to, const CUtensorMap& map, int x, int y, int z, uint32_t barrier);
void tma_store(const CUtensorMap& map, int x, int y, int z, uint32_t from);
void tma_store_commit();
void tma_store_wait(int left);

// sum = a b or sum += a b, of m64nNk16: this thread's N / 2 sums.
void wgmma_fence();
void wgmma(float* sum, int n, uint64_t a, uint64_t b, bool add, bool k_major_a, bool k_major_b);
void wgmma_commit();
void wgmma_wait(int left);

}  // namespace hopper
