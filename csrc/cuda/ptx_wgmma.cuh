// wgmma: a warpgroup multiplies 64 x 16 by 16 x N in bfloat16 from shared memory and adds to float32 in its registers.
//
// Thread t holds of the sum, for j = 0 ... N / 8 - 1 and h = 0, 1: sum[4 j + 2 h] at row t / 32 * 16 + t % 32 / 4 + 8 h, column
// 8 j + t % 4 * 2, and sum[4 j + 2 h + 1] beside it. Nothing may touch these registers between wgmma and wgmma_wait.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace plait {

// Before the first wgmma of a group: orders what was done to its registers.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last LEFT groups are done.
template <int LEFT>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// Keeps the compiler from using the sums before the wgmma_wait that this follows.
template <int COUNT>
__device__ __forceinline__ void wgmma_done(float (&sum)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(sum[i])::"memory");
}

// sum = a b, or sum += a b where add is not 0.
template <int N, bool K_MAJOR_A, bool K_MAJOR_B>
struct Wgmma;

#define PLAIT_SUMS(i) \
  "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]), \
      "+f"(sum[i + 6]), "+f"(sum[i + 7])

template <bool K_MAJOR_A, bool K_MAJOR_B>
struct Wgmma<64, K_MAJOR_A, K_MAJOR_B> {
  static __device__ __forceinline__ void multiply(float (&sum)[32], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, add, 1, 1, %35, %36;\n}"
        : PLAIT_SUMS(0), PLAIT_SUMS(8), PLAIT_SUMS(16), PLAIT_SUMS(24)
        : "l"(a), "l"(b), "r"(add), "n"(K_MAJOR_A ? 0 : 1), "n"(K_MAJOR_B ? 0 : 1));
  }
};

template <bool K_MAJOR_A, bool K_MAJOR_B>
struct Wgmma<128, K_MAJOR_A, K_MAJOR_B> {
  static __device__ __forceinline__ void multiply(float (&sum)[64], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, add, 1, 1, %67, %68;\n}"
        : PLAIT_SUMS(0), PLAIT_SUMS(8), PLAIT_SUMS(16), PLAIT_SUMS(24), PLAIT_SUMS(32), PLAIT_SUMS(40), PLAIT_SUMS(48),
          PLAIT_SUMS(56)
        : "l"(a), "l"(b), "r"(add), "n"(K_MAJOR_A ? 0 : 1), "n"(K_MAJOR_B ? 0 : 1));
  }
};

template <bool K_MAJOR_A, bool K_MAJOR_B>
struct Wgmma<192, K_MAJOR_A, K_MAJOR_B> {
  static __device__ __forceinline__ void multiply(float (&sum)[96], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %98, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, add, 1, 1, %99, %100;\n}"
        : PLAIT_SUMS(0), PLAIT_SUMS(8), PLAIT_SUMS(16), PLAIT_SUMS(24), PLAIT_SUMS(32), PLAIT_SUMS(40), PLAIT_SUMS(48),
          PLAIT_SUMS(56), PLAIT_SUMS(64), PLAIT_SUMS(72), PLAIT_SUMS(80), PLAIT_SUMS(88)
        : "l"(a), "l"(b), "r"(add), "n"(K_MAJOR_A ? 0 : 1), "n"(K_MAJOR_B ? 0 : 1));
  }
};

template <bool K_MAJOR_A, bool K_MAJOR_B>
struct Wgmma<256, K_MAJOR_A, K_MAJOR_B> {
  static __device__ __forceinline__ void multiply(float (&sum)[128], uint64_t a, uint64_t b, int add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, add, 1, 1, %131, %132;\n}"
        : PLAIT_SUMS(0), PLAIT_SUMS(8), PLAIT_SUMS(16), PLAIT_SUMS(24), PLAIT_SUMS(32), PLAIT_SUMS(40), PLAIT_SUMS(48),
          PLAIT_SUMS(56), PLAIT_SUMS(64), PLAIT_SUMS(72), PLAIT_SUMS(80), PLAIT_SUMS(88), PLAIT_SUMS(96),
          PLAIT_SUMS(104), PLAIT_SUMS(112), PLAIT_SUMS(120)
        : "l"(a), "l"(b), "r"(add), "n"(K_MAJOR_A ? 0 : 1), "n"(K_MAJOR_B ? 0 : 1));
  }
};

#undef PLAIT_SUMS

}  // namespace plait
