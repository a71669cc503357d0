// As much of CUDA as the plain kernels use, on the CPU: device memory is memory, streams do at once what they are told (or
// keep it for a graph), kernels run on fibers (fibers.hpp). csrc/cuda is compiled against this by g++, unchanged.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#include "fibers.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ thread_local  // a block runs on one thread
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;

// --- device functions ------------------------------------------------------------------------------------
inline void __syncthreads() { fibers::sync_threads(); }
inline int __syncthreads_or(int x) { return fibers::sync_threads_or(x != 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { fibers::exchange(mask, "__syncwarp", "", 1); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T fiber_lane(const fibers::Lanes& lanes, int lane) {
  T x;
  std::memcpy(&x, lanes.value[lane], sizeof x);
  return x;
}
template <class T>
T __shfl_sync(unsigned mask, T x, int from, int width = 32) {
  const auto& lanes = fibers::exchange(mask, "__shfl_sync", &x, sizeof x);
  const int lane = fibers::thread_index() % 32;
  return fiber_lane<T>(lanes, (lane & ~(width - 1)) | (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int far, int width = 32) {
  const auto& lanes = fibers::exchange(mask, "__shfl_xor_sync", &x, sizeof x);
  const int lane = fibers::thread_index() % 32, other = lane ^ far;
  return fiber_lane<T>(lanes, other / width == lane / width ? other : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned far, int width = 32) {
  const auto& lanes = fibers::exchange(mask, "__shfl_down_sync", &x, sizeof x);
  const int lane = fibers::thread_index() % 32;
  return fiber_lane<T>(lanes, lane % width + int(far) < width ? lane + int(far) : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned far, int width = 32) {
  const auto& lanes = fibers::exchange(mask, "__shfl_up_sync", &x, sizeof x);
  const int lane = fibers::thread_index() % 32;
  return fiber_lane<T>(lanes, lane % width >= int(far) ? lane - int(far) : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto& lanes = fibers::exchange(mask, "__ballot_sync", &predicate, sizeof predicate);
  unsigned ballot = 0;
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1 && fiber_lane<int>(lanes, l)) ballot |= 1u << l;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <class T>
T atomicAdd(T* to, T x) {
  const T old = *to;
  *to += x;
  return old;
}
template <class T>
T atomicMax(T* to, T x) {
  const T old = *to;
  *to = old < x ? x : old;
  return old;
}
template <class T>
T atomicExch(T* to, T x) {
  const T old = *to;
  *to = x;
  return old;
}
template <class T>
T atomicCAS(T* to, T expected, T x) {
  const T old = *to;
  if (old == expected) *to = x;
  return old;
}

inline float __uint_as_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
template <class T>
T __ldg(const T* x) {
  return *x;
}
inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline int64_t min(int64_t a, int64_t b) { return b < a ? b : a; }
inline int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }

// --- the host's side -------------------------------------------------------------------------------------
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorDeviceUninitialized = 201,
  cudaErrorMapBufferObjectFailed = 205,
  cudaErrorPeerAccessUnsupported = 217,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorMisalignedAddress = 716,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureIsolation = 905,
  cudaErrorCapturedEvent = 907,
};
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension, cudaLaunchAttributeCooperative };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
constexpr unsigned long long cudaEnableDefault = 0;
constexpr unsigned cudaIpcMemLazyEnablePeerAccess = 1;
using cudaStream_t = struct FiberStream*;

struct cudaIpcMemHandle_t {
  char reserved[64];
};
struct cudaDeviceProp {
  char name[256];
  struct {
    char bytes[16];
  } uuid;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMalloc(void** data, size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetPCIBusId(char* bus, int length, int device);
cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* bus);
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer);
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* data);
cudaError_t cudaIpcOpenMemHandle(void** data, cudaIpcMemHandle_t handle, unsigned flags);
cudaError_t cudaIpcCloseMemHandle(void* data);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemset(void* to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
#include "cuda_streams.h"
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* found);

namespace fibers {
void tell(cudaStream_t stream, std::function<void()> work);  // it does it now, or when its graph is launched
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A... arguments) {
  const dim3 g = config->gridDim, b = config->blockDim;
  if (g.y > 65535 || g.z > 65535) return cudaErrorInvalidConfiguration;
  const int64_t shared = int64_t(config->dynamicSmemBytes);
  unsigned cluster = 1;
  bool together = false;
  for (unsigned i = 0; i < config->numAttrs; i++) {
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = config->attrs[i].val.clusterDim.x;
    together = together || config->attrs[i].id == cudaLaunchAttributeCooperative;
  }
  fibers::tell(config->stream, [=, kept = std::tuple<P...>(P(arguments)...)] {
    const auto body = [&] { std::apply(kernel, kept); };
    (together ? fibers::run_together : fibers::run_grid)({g.x, g.y, g.z}, {b.x, b.y, b.z}, cluster, shared, body);
  });
  return cudaSuccess;
}
