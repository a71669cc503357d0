// Tensor cores from registers and copies that run beside them: mma.sync, ldmatrix, cp.async (sm_80 and later).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace plait {

// Where something lies in shared memory.
using SharedAddress = uint32_t;
__device__ __forceinline__ SharedAddress shared_address(const void* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}

// c (16 x 8, float32) += a (16 x 16) b (16 x 8) of bfloat16, in the fragment layouts of mma.m16n8k16: lane 4 g + q has
// of a the pairs (g, 2q), (g + 8, 2q), (g, 2q + 8), (g + 8, 2q + 8), of b (2q, g), (2q + 8, g), of c (g, 2q), (g + 8, 2q).
__device__ __forceinline__ void mma(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 of 2 bytes; lane l gives the address of row l % 8 of matrix l / 8, and gets of each the pair
// (l / 4, 2 (l % 4)), or of its transpose.
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&x)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(row)
               : "memory");
}

// Starts a copy of the first `bytes` of 16, zeros for the rest; both addresses at multiples of 16. Nothing is read for 0.
__device__ __forceinline__ void copy_async(SharedAddress to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// The same for 4 bytes; a zero where there is nothing.
__device__ __forceinline__ void copy_word_async(SharedAddress to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(there ? 4 : 0) : "memory");
}
// What was started since the last commit is a group; waits until at most LATER groups of this thread are under way.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int LATER>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

}  // namespace plait
