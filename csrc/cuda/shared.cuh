// The block's dynamic shared memory: what Grid::shared asked for.
#pragma once
#include <cuda_runtime.h>

namespace plait {

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char plait_shared[];
  return reinterpret_cast<T*>(plait_shared);
}

}  // namespace plait
