// One way to start a kernel: launch(PLAIT_AT("add"), kernel<T>, {blocks, threads}, arguments...), on stream(), checked.
#pragma once
#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/check.hpp"
#include "cuda/device.hpp"

namespace plait {

struct At {
  const char *kernel, *file;
  int line;
};
#define PLAIT_AT(kernel) ::plait::At{kernel, __FILE__, __LINE__}

struct Grid {
  dim3 blocks = 1, threads = 1;
  size_t shared = 0;     // bytes of dynamic_shared()
  unsigned cluster = 1;  // blocks along x that run together
  bool together = false;  // all blocks run at once, or the launch fails
};

template <class T>
struct Same {
  using type = T;
};

inline void allow_shared(const At& at, const void* kernel, size_t bytes) {
  if (bytes < 48 * 1024) return;  // at 48 KB the kilobyte that the system keeps may count
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) cuda_failed(error, at.kernel, at.file, at.line);
}

// How many blocks of a kernel run at once on this device, at most. The kernel is loaded then.
template <class... P>
int resident_blocks(const At& at, void (*kernel)(P...), const Grid& grid) {
  const void* const function = reinterpret_cast<const void*>(kernel);
  allow_shared(at, function, grid.shared);
  int count = 0;
  if (grid.cluster == 1) {
    const cudaError_t error =
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, function, int(grid.threads.x), grid.shared);
    if (error != cudaSuccess) cuda_failed(error, at.kernel, at.file, at.line);
    return count * device_properties().multiprocessors;
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = grid.cluster, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.cluster * unsigned(device_properties().multiprocessors)), config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared, config.attrs = &attribute, config.numAttrs = 1;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&count, function, &config);
  if (error != cudaSuccess) cuda_failed(error, at.kernel, at.file, at.line);
  return count * int(grid.cluster);
}

template <class... P>
void launch(const At& at, void (*kernel)(P...), const Grid& grid, typename Same<P>::type... arguments) {
  if (!grid.blocks.x || !grid.blocks.y || !grid.blocks.z) return;  // nothing to do
  allow_shared(at, reinterpret_cast<const void*>(kernel), grid.shared);
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (grid.together) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (grid.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = grid.cluster;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    count++;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared;
  config.stream = stream();
  config.attrs = attributes;
  config.numAttrs = count;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cuda_failed(error, at.kernel, at.file, at.line);
}

// As many blocks as `work` items of `per_block` need, at most what a few waves of the device hold: kernels loop.
inline unsigned blocks_for(int64_t work, int64_t per_block, int waves = 16) {
  const int64_t needed = (work + per_block - 1) / per_block;
  const int64_t most = int64_t(device_properties().multiprocessors) * waves;
  return unsigned(needed < most ? needed : most);
}

}  // namespace plait
