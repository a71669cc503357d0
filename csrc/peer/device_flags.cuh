// How one block of the grid meets the same block of its peers: letters, flags, deadlines (docs/gpu-collectives.md).
//
// A collective is stages with meetings between them. A kernel goes through all of them (only = -1), or, where the ranks of
// a GPU take turns, does one stage, and the hosts meet. Threads of a block call everything here together.
#pragma once
#include "cuda/ptx_sys.cuh"
#include "peer/device_layout.hpp"

namespace plait {

// The first of a rank's blocks to fail says why; every other ends when it looks. A late peer's other peers end, too. No
// member of what calls it: that would have to lie in memory.
__device__ PLAIT_APART inline void tell_failure(const Peers& p, const Said* own, const Said* theirs, Failure why, int peer,
                                                uint32_t number, int stage) {
  if (!claim(&p.sticky(p.rank)->failed, 1)) return;
  FailureReport* const report = p.report;
  report->peer = uint32_t(peer), report->number = number, report->stage = uint32_t(stage);
  if (why != Failure::aborted) report->own = *own, report->theirs = *theirs;
  store_release_sys(&report->code, uint32_t(why));
  if (why != Failure::late) return;  // all find out by themselves
  for (int rank = 0; rank < p.size; rank++)
    if (rank != p.rank) store_relaxed_sys(&p.sticky(rank)->aborted, uint32_t(p.rank + 1) | uint32_t(peer + 1) << 8);
}

// Until there() holds. False if something has failed meanwhile, or fails since `peer` is late: fail(why, who) tells it.
template <class There, class Fail>
__device__ __forceinline__ bool wait_for(const Peers& p, int peer, const There& there, const Fail& fail) {
  constexpr int LOOKS = 64;  // between looks at the clock and at what has failed
  if (there()) return true;
  const uint64_t start = nanoseconds(), limit = p.sticky(p.rank)->limit;
  for (;;) {
#pragma unroll 1
    for (int look = 0; look < LOOKS; look++) {
      if (there()) return true;
      spin();
    }
    if (load_relaxed_sys(&p.sticky(p.rank)->failed)) return false;
    const uint32_t by = load_relaxed_sys(&p.sticky(p.rank)->aborted);
    const bool late = nanoseconds() - start > limit;
    if (by) fail(Failure::aborted, int(by));
    if (!by && late) fail(Failure::late, peer);
    if (by || late) return false;
  }
}

class Meeting {
 public:
  // What a block keeps of it in shared memory: registers are for sums.
  struct Kept {
    Said heard[MOST_RANKS];
    BlockState state;
  };
  __device__ __forceinline__ Meeting(const Peers& peers, Kept& kept, int only)
      : p_(peers), heard_(kept.heard), state_(kept.state), only_(only) {}

  // False if a collective before has failed.
  __device__ __forceinline__ bool begin() {
    bool over = false;
    if (threadIdx.x == 0) {
      state_ = *p_.state(int(blockIdx.x));
      Sticky* const own = p_.sticky(p_.rank);
      over = load_relaxed_sys(&own->failed) != 0 || given_up();
    }
    return !__syncthreads_or(over);
  }

  // say(peer) is what a peer is told. The thread that writes a letter also writes the flag that it is to be read after.
  template <class Say>
  __device__ __forceinline__ void announce(const Say& say) {
    const int peer = int(threadIdx.x);
    if (peer >= p_.size) return;
    if (peer == p_.rank) {
      heard_[peer] = say(peer);
    } else if (on()) {
      DeviceLetter letter;
      letter.said = say(peer), letter.number = state_.number;
      *p_.letter(peer, int(blockIdx.x), p_.rank, state_.calls) = letter;
    }
  }

  // Until all peers are here, too: what they wrote before can be read, what they have read can be written over. False if
  // one of them is late, or something has failed.
  __device__ __forceinline__ bool meet() {
    at_++, epoch_++;
    __syncthreads();
    if (only_ >= 0) return true;
    bool there = true;
    const int peer = int(threadIdx.x), block = int(blockIdx.x);
    if (peer < p_.size && peer != p_.rank) {
      store_release_sys(p_.flag(peer, block, p_.rank), state_.epoch + epoch_);
      there = wait(p_.flag(p_.rank, block, peer), peer);
      acquire_sys();
    }
    return !__syncthreads_or(!there);
  }

  // After the first meeting: whether all ranks mean the same. What they said is at said(rank) then.
  __device__ __forceinline__ bool hear() {
    const int peer = int(threadIdx.x);
    bool differs = false;
    if (peer < p_.size && peer != p_.rank) {
      const DeviceLetter letter = *p_.letter(p_.rank, int(blockIdx.x), peer, state_.calls);
      const Said &own = said(p_.rank), &said = letter.said;
      const bool alike = said.kind() == int(CallKind::all_to_all) || (said.size == own.size && said.layout == own.layout);
      differs = said.call != own.call || letter.number != state_.number || !alike;
      heard_[peer] = said;
      if (differs) fail(Failure::differs, peer);
    }
    return !__syncthreads_or(differs);
  }
  __device__ __forceinline__ const Said& said(int rank) const { return heard_[rank]; }

  // What this rank would have said in all_to_all to a peer that sends something else; for what the host is told of it.
  __device__ __forceinline__ void received(int64_t bytes) { heard_[p_.rank].size = bytes; }

  // Whether this launch is to do what follows; whether it has nothing more to do.
  __device__ __forceinline__ bool on() const { return only_ < 0 || only_ == at_; }
  __device__ __forceinline__ bool past() const { return only_ >= 0 && at_ > only_; }
  // Staging of round `round` of this collective.
  __device__ __forceinline__ char* cell(int rank, int64_t round) const {
    return p_.cell_of(rank, int(blockIdx.x), state_.round + uint32_t(round));
  }

  // After the last stage, of so many rounds.
  __device__ __forceinline__ void end(int64_t rounds) {
    if (!on()) return;
    __syncthreads();
    const uint32_t next = state_.number + 1;
    if (threadIdx.x == 0)
      *p_.state(int(blockIdx.x)) = {state_.epoch + epoch_, state_.round + uint32_t(rounds), state_.calls + 1, next};
    if (blockIdx.x == 0)
      for (int block = int(gridDim.x + threadIdx.x); block < p_.grid; block += int(blockDim.x)) p_.state(block)->number = next;
  }

  // Of a product, whose kernel is the next: before begin(), and after end(). One block.
  __device__ __forceinline__ void leave() const {
    if (threadIdx.x == 0 && only_ <= 0) p_.sticky(p_.rank)->entered = 0;
  }
  __device__ __forceinline__ void enter() const {
    const uint32_t number = state_.number + 1;
    if (threadIdx.x == 0 && on()) p_.sticky(p_.rank)->entered = number ? number : 1;
  }

  __device__ __forceinline__ void fail(Failure why, int peer) const {
    const int who = why == Failure::aborted ? p_.rank : peer;
    tell_failure(p_, heard_ + p_.rank, heard_ + who, why, peer, state_.number, at_);
  }

 private:
  __device__ __forceinline__ static bool reached(const uint32_t* flag, uint32_t wanted) {
    return int32_t(load_relaxed_sys(flag) - wanted) >= 0;
  }
  __device__ __forceinline__ bool given_up() const {
    const uint32_t by = load_relaxed_sys(&p_.sticky(p_.rank)->aborted);
    if (by) fail(Failure::aborted, int(by));
    return by != 0;
  }
  __device__ __forceinline__ bool wait(const uint32_t* flag, int peer) const {
    const uint32_t wanted = state_.epoch + epoch_;
    return wait_for(p_, peer, [&] { return reached(flag, wanted); }, [&](Failure why, int who) { fail(why, who); });
  }

  const Peers& p_;
  Said* const heard_;
  BlockState& state_;
  uint32_t epoch_ = 0;
  int only_, at_ = 0;
};

}  // namespace plait
