// Sums that no order of additions can change (core/exact.hpp). Chunks of 1024 are summed in the CPU's order; their sums are
// integers, which atomics add.
#include "core/exact.hpp"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "cuda/warp.cuh"

namespace plait {
namespace {

constexpr int THREADS = 256;
constexpr int OF_CHUNK = 4;  // threads of a chunk: thread q keeps lanes 4 q ... 4 q + 3

using Counter = unsigned long long;  // what atomicAdd takes; sums are modulo 2^64

template <bool SQUARES, bool WIDE>
__global__ void __launch_bounds__(THREADS) chunks_kernel(const float* x, int64_t n, Counter* limbs) {
  __shared__ Counter sums[LIMBS];
  if (threadIdx.x < LIMBS) sums[threadIdx.x] = 0;
  __syncthreads();
  const int q = int(threadIdx.x) % OF_CHUNK;
  constexpr int CHUNKS = THREADS / OF_CHUNK;  // of a block at a time
  // Whole warps go on together, for they exchange lanes.
  for (int64_t chunk = int64_t(blockIdx.x) * CHUNKS + threadIdx.x / OF_CHUNK;
       chunk / (WARP / OF_CHUNK) * (WARP / OF_CHUNK) * EXACT_CHUNK < n; chunk += int64_t(gridDim.x) * CHUNKS) {
    const int64_t first = chunk * EXACT_CHUNK + 4 * q, end = (chunk + 1) * EXACT_CHUNK;
    float lane[4] = {};
    if (WIDE && end <= n) {
#pragma unroll 16
      for (int i = 0; i < int(EXACT_CHUNK); i += int(EXACT_LANES)) {
        float v[4];
        load_pack(x + first + i, v);
#pragma unroll
        for (int k = 0; k < 4; k++) lane[k] += SQUARES ? v[k] * v[k] : v[k];
      }
    } else {
      for (int64_t i = first; i < n && i < end; i += EXACT_LANES)
        for (int k = 0; k < 4; k++)
          if (i + k < n) lane[k] += SQUARES ? x[i + k] * x[i + k] : x[i + k];
    }
#pragma unroll
    for (int far = 2; far > 0; far /= 2)  // lanes l + 8, then l + 4
#pragma unroll
      for (int k = 0; k < 4; k++) lane[k] += __shfl_xor_sync(ALL_LANES, lane[k], far);
    const float sum = (lane[0] + lane[2]) + (lane[1] + lane[3]);
    if (q == 0 && chunk * EXACT_CHUNK < n) {
      const LimbTerm term = limb_term(sum);
      atomicAdd(&sums[term.place], Counter(term.low));
      if (term.high) atomicAdd(&sums[term.place + 1], Counter(term.high));
    }
  }
  __syncthreads();
  if (threadIdx.x < LIMBS && sums[threadIdx.x]) atomicAdd(&limbs[threadIdx.x], sums[threadIdx.x]);
}

}  // namespace

void exact_sum(const ConstArray& x, bool squares, const Array& limbs) {
  check_limbs("exact_sum", limbs);
  PLAIT_CHECK(x.contiguous(), "exact_sum", "x ", shape_text(x), " must be contiguous");
  const float* data = x.as<float>();
  const int64_t n = x.size(), chunks = (n + EXACT_CHUNK - 1) / EXACT_CHUNK;
  const bool wide = pack_aligned<float>(data, 0);
  launch(PLAIT_AT("exact_sum"),
         squares ? (wide ? chunks_kernel<true, true> : chunks_kernel<true, false>)
                 : (wide ? chunks_kernel<false, true> : chunks_kernel<false, false>),
         {blocks_for(chunks, THREADS / OF_CHUNK), THREADS}, data, n, reinterpret_cast<Counter*>(limbs.as<int64_t>()));
}

double exact_value(const ConstArray& limbs) {
  check_limbs("exact_value", limbs);
  int64_t values[LIMBS];
  PLAIT_CUDA(cudaMemcpyAsync(values, limbs.as<int64_t>(), sizeof values, cudaMemcpyDeviceToHost, stream()));
  PLAIT_CUDA(cudaStreamSynchronize(stream()));
  return nearest_double(values);
}

}  // namespace plait
