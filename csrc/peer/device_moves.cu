// all_gather, all_to_all, broadcast and barrier: a rank stages what its peers are to have, or says where it lies in its
// arena, and fetches what is for itself.
#include "cuda/shared.cuh"
#include "peer/device_copy.cuh"
#include "peer/device_flags.cuh"
#include "peer/device_kernels.hpp"

namespace plait {
namespace {

struct Moves {
  const Peers& p;
  const MoveTask& task;
  Meeting& meeting;

  __device__ __forceinline__ bool exchange() const { return task.kind == int(CallKind::all_to_all); }
  // Bytes [first, first + count) of a piece of so many are this block's in this round.
  __device__ __forceinline__ int64_t run(int64_t bytes, int64_t round, int64_t window, int64_t& first) const {
    const int64_t share = move_share(bytes, int(gridDim.x)), start = int64_t(blockIdx.x) * share;
    const int64_t stop = start + share < bytes ? start + share : bytes;
    first = start + round * window;
    return stop - first < window ? stop - first : window;
  }

  __device__ __forceinline__ int64_t sent(int q) const {  // of x, to rank q
    if (exchange()) return task.from[q + 1] - task.from[q];
    return task.kind == int(CallKind::broadcast) && p.rank != task.root ? 0 : task.from[1];
  }

  __device__ void stage(int64_t round) const {
    if (!meeting.on() || task.said.source >= 0) return;
    for (int q = 0; q < (exchange() ? p.size : 1); q++) {
      int64_t first;
      const int64_t count = run(sent(q), round, task.window, first);
      if (count <= 0 || (exchange() && q == p.rank)) continue;
      copy_run(meeting.cell(p.rank, round) + q * task.window, task.x + (exchange() ? task.from[q] : 0) + first, count);
    }
  }

  __device__ void take(int64_t round, int64_t window) const {
    if (!meeting.on()) return;
    for (int step = 0; step < p.size; step++) {  // every rank begins with another: links are shared
      const int q = (p.rank + step) % p.size;
      if (task.kind == int(CallKind::broadcast) && (q != task.root || q == p.rank)) continue;
      int64_t first;
      const int64_t count = run(task.to[q + 1] - task.to[q], round, window, first);
      if (count <= 0) continue;
      const char* from = meeting.cell(q, round) + (exchange() ? p.rank * task.window : 0);
      if (q == p.rank)
        from = task.x + (exchange() ? task.from[q] : 0) + first;
      else if (meeting.said(q).source >= 0)
        from = p.bases[q] + meeting.said(q).source + first;
      char* const to = task.out + task.to[q] + first;
      if (from != to) copy_run(to, from, count);
    }
  }

  // Whether all ranks receive as much as is sent to them; every rank finds out.
  __device__ bool balanced() const {
    uint64_t sum = 0;
    for (int rank = 0; rank < p.size; rank++) sum += meeting.said(rank).layout;
    if (sum == 0) return true;
    if (threadIdx.x == 0) {
      int peer = p.rank;
      for (int rank = 0; rank < p.size; rank++)
        if (rank != p.rank && meeting.said(rank).size != task.to[rank + 1] - task.to[rank]) peer = rank;
      meeting.received(task.to[peer + 1] - task.to[peer]);
      meeting.fail(Failure::unbalanced, peer);
    }
    return false;
  }
};

__global__ void __launch_bounds__(MOST_THREADS, 1)
    moves_kernel(const __grid_constant__ Peers p, const __grid_constant__ MoveTask task, int only) {
  Meeting meeting(p, *dynamic_shared<Meeting::Kept>(), only);
  const Moves block{p, task, meeting};
  const bool product = task.kind > int(CallKind::all_reduce);
  if (product) meeting.leave();
  if (!meeting.begin()) return;
  meeting.announce([&](int peer) {
    Said said = task.said;
    if (block.exchange()) {
      if (said.source >= 0) said.source += task.from[peer];
      said.size = task.from[peer + 1] - task.from[peer];
    }
    return said;
  });
  int64_t rounds = 1, window = task.window;
  bool in_place = false;  // one meeting more: then all have read what is the caller's again
  for (int64_t round = 0; round < rounds + in_place; round++) {
    if (round < rounds) block.stage(round);
    if (!meeting.meet() || meeting.past()) return;
    if (round == 0) {
      if (!meeting.hear() || (block.exchange() && !block.balanced())) return;
      bool direct = true;
      for (int rank = 0; rank < p.size; rank++) {
        const bool there = meeting.said(rank).source >= 0;
        const bool asked = task.kind != int(CallKind::broadcast) || rank == task.root;
        in_place = in_place || (asked && there);
        direct = direct && (there || !asked);
        if (meeting.said(rank).rounds > rounds) rounds = meeting.said(rank).rounds;
      }
      if (direct) rounds = 1, window = INT64_MAX / 2;
    }
    if (round < rounds) block.take(round, window);
  }
  meeting.end(rounds);
  if (product) meeting.enter();
}

}  // namespace

MoveKernel move_kernel() { return moves_kernel; }
int64_t move_shared_bytes() { return int64_t(sizeof(Meeting::Kept)); }

}  // namespace plait
