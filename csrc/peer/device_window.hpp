// Collectives of the ranks of a node on their GPUs: one kernel each, over a block that this communicator has in every
// rank's arena (device_layout.hpp). docs/gpu-collectives.md has the protocol.
#pragma once
#include <cuda_runtime.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "peer/device_call.hpp"

namespace plait {

class DeviceWindow {
 public:
  // blocks[r], bases[r]: addresses, as this process sees them, of this communicator's block of rank r and of its arena,
  // which has arena_bytes[r]. blocks_of_grid and all sizes are the same on all ranks. Clears this rank's block: no rank may
  // launch before all ranks have made their window, nor give the block back before all have called close().
  DeviceWindow(int rank, int size, const std::vector<uintptr_t>& blocks, const std::vector<uintptr_t>& bases,
               const std::vector<int64_t>& arena_bytes, int64_t staging, int blocks_of_grid, bool split, const Tuning& tuning);
  ~DeviceWindow();
  DeviceWindow(const DeviceWindow&) = delete;

  static int64_t block_bytes(int size, int64_t staging);  // of two staging buffers of so many bytes
  static int resident_blocks();                           // the most that run at once on this device

  const DeviceRoom& room() const { return room_; }

  // Queues the call on stream(), behind what this window has on others; in split mode stage 0, 1, ... of it, with the hosts
  // of all ranks meeting in between when their streams are done.
  void launch(const DeviceCall& call, int stage);
  // Throws what went wrong in a collective that has run; every later one ends at once, and says the same here. Does not wait.
  void check() const;
  int late_peer() const;  // the rank that a collective gave up waiting for, or -1
  bool idle() const;       // whether all that was launched is done; of graphs it knows nothing
  int64_t copied() const { return copied_; }  // bytes of large arrays that lay in no arena, so far

  void set_deadline(double seconds);  // that a rank waits for its peers inside a collective; 60 until set
  void abort();                       // this rank's and its peers' collectives end, and name this rank
  void close();                       // waits for its own collectives; nothing may be launched any more

 private:
  void put(void* to, const void* from, int64_t bytes);

  Peers peers_ = {};
  DeviceRoom room_;
  cudaStream_t side_ = nullptr, last_ = nullptr;  // for the host's words; of the last collective
  cudaEvent_t done_ = nullptr;                    // of that
  bool launched_ = false, open_ = true;
  int64_t copied_ = 0;
};

}  // namespace plait
