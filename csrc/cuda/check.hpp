// Every CUDA call is checked: PLAIT_CUDA(cudaMalloc(&p, n)) throws an error with the call, its place and CUDA's words.
#pragma once
#include <cuda_runtime.h>

#include "core/error.hpp"

namespace plait {

[[noreturn]] void cuda_failed(cudaError_t error, const char* call, const char* file, int line);

}  // namespace plait

#define PLAIT_CUDA(call)                                                                             \
  do {                                                                                               \
    const cudaError_t plait_error = (call);                                                          \
    if (plait_error != cudaSuccess) ::plait::cuda_failed(plait_error, #call, __FILE__, __LINE__);    \
  } while (0)
