// What plait's design takes for granted of a GPU and its driver, asked in a few seconds before anything else runs:
//   nvcc -gencode arch=compute_90a,code=sm_90a -o probe tests/gpu/probe.cu && ./probe
// Exit code 1 if kernels of several streams do not run together, or cooperative clusters do not start.
#include <cuda_runtime.h>

#include <cstdio>

constexpr int SHARED = 200 << 10;  // bytes of a large kernel's block

__device__ unsigned long long now() {
  unsigned long long t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}

// Rank r of n says that it is there, and waits half a second for all others.
__global__ void __launch_bounds__(512, 1) meet(volatile int* flags, int r, int n, int* met) {
  if (threadIdx.x || blockIdx.x) return;
  flags[r] = 1;
  __threadfence();
  const unsigned long long start = now();
  for (int q = 0; q < n; q++)
    while (!flags[q])
      if (now() - start > 500000000ull) return;
  met[r] = 1;
}

__global__ void __launch_bounds__(384, 1) neighbours(float* x) {
  extern __shared__ __align__(1024) float shared[];
  shared[threadIdx.x] = 1;
  __syncthreads();
  x[threadIdx.x] = shared[threadIdx.x ^ 1];
}

// full: with as many blocks and as much shared memory as the kernels of peers have, which fill the chip.
bool streams_meet(int n, bool cooperative, bool full, int* flags, int* met) {
  cudaMemset(flags, 0, 4096), cudaMemset(met, 0, 4096), cudaDeviceSynchronize();
  cudaStream_t streams[16];
  for (int r = 0; r < n; r++) cudaStreamCreateWithFlags(&streams[r], cudaStreamNonBlocking);
  cudaError_t error = cudaSuccess;
  for (int r = 0; r < n; r++) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative, attribute.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = full ? 128 / n : 4, config.blockDim = full ? 512 : 32, config.stream = streams[r];
    config.dynamicSmemBytes = full ? SHARED : 0;
    config.attrs = &attribute, config.numAttrs = cooperative;
    const cudaError_t said = cudaLaunchKernelEx(&config, meet, (volatile int*)flags, r, n, met);
    if (said != cudaSuccess) error = said;
  }
  cudaDeviceSynchronize();
  int got[16] = {}, sum = 0;
  cudaMemcpy(got, met, sizeof got, cudaMemcpyDeviceToHost);
  for (int r = 0; r < n; r++) sum += got[r], cudaStreamDestroy(streams[r]);
  printf("%2d streams, %s %s kernels: %d of %d met, %s\n", n, cooperative ? "cooperative" : "plain",
         full ? "large" : "small", sum, n, cudaGetErrorName(error));
  return sum == n;
}

bool clusters_start(float* x) {
  const int bytes = 229472;  // wgmma's tile of 256 columns
  cudaFuncSetAttribute(neighbours, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeCooperative, attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = 2, attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = 264, config.blockDim = 384, config.dynamicSmemBytes = bytes;
  config.attrs = attributes + 1, config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t asked = cudaOccupancyMaxActiveClusters(&clusters, neighbours, &config);
  config.gridDim = 2 * clusters, config.attrs = attributes, config.numAttrs = 2;
  const cudaError_t launched = cudaLaunchKernelEx(&config, neighbours, x), done = cudaDeviceSynchronize();
  printf("cooperative clusters of 2 with %d bytes: %d at once (%s); all of them: %s, %s\n", bytes, clusters,
         cudaGetErrorName(asked), cudaGetErrorName(launched), cudaGetErrorName(done));
  return launched == cudaSuccess && done == cudaSuccess;
}

int main() {
  int *flags, *met;
  float* x;
  if (cudaMalloc(&flags, 4096) || cudaMalloc(&met, 4096) || cudaMalloc(&x, 4096)) return puts("no GPU"), 1;
  cudaFuncSetAttribute(meet, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED);
  bool fine = true;
  for (int n : {2, 4, 8, 16})
    for (bool cooperative : {false, true})
      for (bool full : {false, true}) fine &= streams_meet(n, cooperative, full, flags, met);
  neighbours<<<1, 384, 48 * 1024>>>(x);
  printf("48 KB of shared memory without asking: %s\n", cudaGetErrorName(cudaGetLastError()));
  return clusters_start(x) && fine ? 0 : 1;
}
