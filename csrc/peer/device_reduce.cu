// all_reduce and reduce_scatter: a rank stages what its peers are to add, or says where it lies in its arena, adds its own
// slice straight from there, and writes the result to whoever wants it.
#include "cuda/shared.cuh"
#include "peer/device_flags.cuh"
#include "peer/device_kernels.hpp"
#include "peer/device_norm.cuh"
#include "peer/device_sum.cuh"

namespace plait {
namespace {

// What one block does of it. Round j: it is staged, all meet, results of round j - 1 are collected, the slice is added. One
// meeting more for the results of the last round, and where arrays are read in place: then all have read them.
template <class X, class Y>
struct Reduction {
  static constexpr int64_t X_BYTES = sizeof(X), Y_BYTES = sizeof(Y);
  const Peers& p;
  const ReduceTask& task;
  Meeting& meeting;
  Places& places;

  __device__ __forceinline__ int own() const { return task.once ? 0 : p.rank; }
  __device__ __forceinline__ int64_t length(int q) const { return task.bounds[q + 1] - task.bounds[q]; }
  // Elements [first, first + count) of slice q are this block's in this round.
  __device__ __forceinline__ int64_t run(int q, int64_t round, int64_t window, int64_t& first) const {
    const int64_t start = int64_t(blockIdx.x) * task.share, all = task.outer * length(q);
    const int64_t stop = start + task.share < all ? start + task.share : all;
    first = start + round * window;
    const int64_t left = stop - first;
    return left < window ? left : window;
  }
  // What `from` has staged of slice q.
  __device__ __forceinline__ char* piece(int from, int q, int64_t round) const {
    return meeting.cell(from, round) + q * task.pitch;
  }

  __device__ void stage(int64_t round) const {
    if (!meeting.on() || task.said.source >= 0) return;
    for (int q = 0; q < (task.once ? 1 : p.size); q++) {
      int64_t first;
      const int64_t count = run(q, round, task.window, first);
      if (count <= 0 || (!task.once && q == p.rank)) continue;
      for (int node = 0; node < task.nodes[p.rank]; node++) {
        char* const to = piece(p.rank, q, round) + node * task.node_pitch;
        const char* const from = task.source + (node * task.outer * task.width + task.bounds[q]) * X_BYTES;
        if (task.outer > 1)
          copy_rows(reinterpret_cast<X*>(to), reinterpret_cast<const X*>(from), first, count, length(q), task.width);
        else
          copy_run(to, from + first * X_BYTES, count * X_BYTES);
      }
    }
  }

  // Where the parts of the own slice lie, and where its result goes.
  __device__ int place(int64_t round, int64_t first) const {
    const int64_t slice = task.bounds[own()] * X_BYTES;
    for (int k = int(threadIdx.x); k < task.parts; k += int(blockDim.x)) {
      int from = 0, node = k;
      while (node >= task.nodes[from]) node -= task.nodes[from++];
      const char* array = task.source;
      if (from != p.rank) array = meeting.said(from).source >= 0 ? p.bases[from] + meeting.said(from).source : nullptr;
      if (array)
        places.parts[k] = {array + node * task.outer * task.width * X_BYTES + slice, task.width - length(own())};
      else
        places.parts[k] = {piece(from, own(), round) + node * task.node_pitch - first * X_BYTES, 0};
    }
    const bool to_all = task.gather && !task.once;
    const int rank = int(threadIdx.x);
    if (rank < p.size && (to_all || rank == 0)) {
      const int64_t start = task.gather ? task.bounds[own()] * Y_BYTES : 0;
      char* to = task.out + start;
      if (to_all && rank != p.rank)
        to = meeting.said(rank).out >= 0 ? p.bases[rank] + meeting.said(rank).out + start
                                         : piece(rank, own(), round) + task.result_at - first * Y_BYTES;
      places.outs[rank] = to;
    }
    __syncthreads();
    return to_all ? p.size : 1;
  }

  __device__ void add(int64_t round, int64_t window, float* aside) const {
    if (!meeting.on()) return;
    int64_t first;
    const int64_t count = run(own(), round, window, first);
    if (count <= 0) return;
    const int outs = place(round, first);
    // packs begin where the first part comes to a boundary, if all others do there, too
    constexpr int N = PACK<X>, Y_ALIGN = N * Y_BYTES < 16 ? N * Y_BYTES : 16;
    const int64_t column = task.bounds[own()];
    const int64_t before = int64_t(-reinterpret_cast<uintptr_t>(places.parts[0].at + first * X_BYTES) % 16) / X_BYTES;
    const int64_t from = first + before;
    uint64_t in = task.outer > 1 ? uint64_t((length(own()) | task.width | from) * X_BYTES) : 0, out = 0;
    for (int k = 0; k < task.parts; k++) in |= reinterpret_cast<uintptr_t>(places.parts[k].at + from * X_BYTES);
    for (int k = 0; k < outs; k++) out |= reinterpret_cast<uintptr_t>(places.outs[k] + from * Y_BYTES);
    if (task.residual) out |= reinterpret_cast<uintptr_t>(task.residual + (column + from) * Y_BYTES);
    if (task.update.master)
      in |= reinterpret_cast<uintptr_t>(task.update.master + from) | reinterpret_cast<uintptr_t>(task.update.first + from) |
            reinterpret_cast<uintptr_t>(task.update.second + from);
    const int64_t packs = in % 16 == 0 && out % Y_ALIGN == 0 && before < count ? (count - before) / N : 0;
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x)
      sum_pack<X, Y, N>(task, places, outs, column, length(own()), aside, from + i * N);
    for (int64_t i = threadIdx.x; i < count - packs * N; i += blockDim.x)
      sum_pack<X, Y, 1>(task, places, outs, column, length(own()), aside, first + (i < before ? i : i + packs * N));
  }

  __device__ void collect(int64_t round, int64_t window) const {
    if (!meeting.on() || !task.gather || task.once || task.said.out >= 0) return;
    for (int q = 0; q < p.size; q++) {
      int64_t first;
      const int64_t count = run(q, round, window, first);
      if (q == p.rank || count <= 0) continue;
      copy_run(task.out + (task.bounds[q] + first) * Y_BYTES, piece(p.rank, q, round) + task.result_at, count * Y_BYTES);
    }
  }

  __device__ void norm() const {
    if constexpr (IS_FLOAT<Y>) {
      if (!meeting.on() || !task.norm.channels) return;
      __syncthreads();
      for (int q = 0; q < (task.once ? 1 : p.size); q++) {
        int64_t first;
        const int64_t count = run(q, 0, task.share, first), at = (task.bounds[q] + first) / task.norm.channels;
        if (count > 0) norm_rows<Y>(task.norm, task.out, at, at + count / task.norm.channels);
      }
    }
  }
};

template <class X, class Y>
__global__ void __launch_bounds__(MOST_THREADS, 1)
    reduce_kernel(const __grid_constant__ Peers p, const __grid_constant__ ReduceTask task, int only) {
  Places& places = *dynamic_shared<Places>();
  float* const aside = reinterpret_cast<float*>(&places + 1) + threadIdx.x;
  Meeting meeting(p, places.kept, only);
  if (!meeting.begin()) return;
  meeting.announce([&](int) { return task.said; });
  const Reduction<X, Y> block{p, task, meeting, places};
  int64_t rounds = 1, window = task.window;
  bool last = task.gather && !task.once;  // one meeting more
  for (int64_t round = 0; round < rounds + last; round++) {
    if (round < rounds) block.stage(round);
    if (!meeting.meet() || meeting.past()) return;
    if (round == 0) {
      if (!meeting.hear()) return;
      bool direct = true;
      for (int rank = 0; rank < p.size; rank++) {
        last = last || meeting.said(rank).source >= 0;
        direct = direct && meeting.said(rank).source >= 0 && (!task.gather || meeting.said(rank).out >= 0);
      }
      if (direct) window = task.share;
      rounds = direct ? 1 : task.said.rounds;
    } else {
      block.collect(round - 1, window);
    }
    if (round < rounds) block.add(round, window, aside);
  }
  block.norm();
  meeting.end(rounds);
}

}  // namespace

ReduceKernel reduce_kernel_of(DType in, DType out) {
  if (in == DType::float32 && out == in) return reduce_kernel<float, float>;
  if (in == DType::float32 && out == DType::bfloat16) return reduce_kernel<float, bfloat16>;
  if (in == DType::bfloat16 && out == in) return reduce_kernel<bfloat16, bfloat16>;
  if (in == DType::bfloat16 && out == DType::float32) return reduce_kernel<bfloat16, float>;
  if (in == DType::int32 && out == in) return reduce_kernel<int32_t, int32_t>;
  if (in == DType::int64 && out == in) return reduce_kernel<int64_t, int64_t>;
  return nullptr;
}

int64_t reduce_shared_bytes(DType in, int depth, int threads) {
  const bool floats = in == DType::float32 || in == DType::bfloat16;
  return int64_t(sizeof(Places)) + (floats ? int64_t(depth) * threads * 4 * (16 / size_of(in)) : 0);
}

}  // namespace plait
