// Marks of functions that run on either backend: in CUDA sources they are compiled for host and device.
#pragma once

#ifdef __CUDACC__
#define PLAIT_HOST_DEVICE __host__ __device__
#define PLAIT_INLINE __host__ __device__ __forceinline__
#else
#define PLAIT_HOST_DEVICE
#define PLAIT_INLINE inline __attribute__((always_inline))
#endif
