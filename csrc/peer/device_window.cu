#include "peer/device_window.hpp"

#include <algorithm>
#include <cstring>

#include "cuda/launch.cuh"

namespace plait {
namespace {

constexpr const char* WINDOW = "device window";
constexpr DType REDUCED[][2] = {{DType::float32, DType::float32},   {DType::float32, DType::bfloat16},
                                {DType::bfloat16, DType::bfloat16}, {DType::bfloat16, DType::float32},
                                {DType::int32, DType::int32},       {DType::int64, DType::int64}};

int64_t cell_bytes(int64_t staging, int grid) { return staging / grid / LINE * LINE; }

// With all the shared memory that a call may ask for. Asking loads the kernels: CUDA would load one behind a collective that
// waits for a peer, and wait itself.
int blocks_of_a_multiprocessor() {
  int least = MOST_BLOCKS;
  const auto ask = [&](const void* kernel, int64_t shared) {
    int blocks = 0;
    PLAIT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
    PLAIT_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, MOST_THREADS, size_t(shared)));
    least = std::min(least, blocks);
  };
  for (const auto& types : REDUCED)
    ask(reinterpret_cast<const void*>(reduce_kernel_of(types[0], types[1])),
        std::min<int64_t>(device_properties().shared_bytes, reduce_shared_bytes(types[0], MOST_DEPTH, MOST_THREADS)));
  ask(reinterpret_cast<const void*>(move_kernel()), move_shared_bytes());
  return least;
}

}  // namespace

int64_t DeviceWindow::block_bytes(int size, int64_t staging) { return Peers::control_bytes(size) + 2 * staging; }

int DeviceWindow::resident_blocks() {
  return std::min(MOST_BLOCKS, device_properties().multiprocessors * blocks_of_a_multiprocessor());
}

DeviceWindow::DeviceWindow(int rank, int size, const std::vector<uintptr_t>& blocks, const std::vector<uintptr_t>& bases,
                           const std::vector<int64_t>& arena_bytes, int64_t staging, int blocks_of_grid, bool split,
                           const Tuning& tuning) {
  PLAIT_CHECK(size >= 1 && size <= MOST_RANKS && rank >= 0 && rank < size, WINDOW, "rank ", rank, " of ", size,
              ", a window is for 1 to ", MOST_RANKS);
  PLAIT_CHECK(int(blocks.size()) == size && int(bases.size()) == size && int(arena_bytes.size()) == size, WINDOW,
              "needs a block and an arena of each of ", size, " ranks");
  PLAIT_CHECK(blocks_of_grid >= 1 && blocks_of_grid <= resident_blocks(), WINDOW, "a grid of ", blocks_of_grid,
              " blocks, this device runs ", resident_blocks(), " at once");
  peers_.rank = rank, peers_.size = size, peers_.grid = blocks_of_grid, peers_.cell = cell_bytes(staging, blocks_of_grid);
  for (int peer = 0; peer < size; peer++) {
    PLAIT_CHECK(blocks[size_t(peer)] % LINE == 0, WINDOW, "the block of rank ", peer, " is not aligned to ", LINE, " bytes");
    peers_.blocks[peer] = reinterpret_cast<char*>(blocks[size_t(peer)]);
    peers_.bases[peer] = reinterpret_cast<char*>(bases[size_t(peer)]);
  }
  room_ = {rank, size, blocks_of_grid, peers_.cell, split, tuning, peers_.bases[rank], arena_bytes[size_t(rank)]};
  PLAIT_CUDA(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking));
  PLAIT_CUDA(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
  void* report = nullptr;
  PLAIT_CUDA(cudaHostAlloc(&report, sizeof(FailureReport), cudaHostAllocMapped | cudaHostAllocPortable));
  peers_.report = new (report) FailureReport();  // unified addresses: the device has the same
  PLAIT_CUDA(cudaMemsetAsync(peers_.blocks[rank], 0, size_t(Peers::control_bytes(size)), side_));
  PLAIT_CUDA(cudaStreamSynchronize(side_));
  set_deadline(60.0);
}

DeviceWindow::~DeviceWindow() {
  if (open_ && launched_) cudaEventSynchronize(done_);
  if (done_) cudaEventDestroy(done_);
  if (side_) cudaStreamDestroy(side_);
  if (peers_.report) cudaFreeHost(peers_.report);
}

void DeviceWindow::launch(const DeviceCall& call, int stage) {
  PLAIT_CHECK(open_, WINDOW, "closed");
  PLAIT_CHECK(stage >= 0 && (stage == 0 || room_.split), WINDOW, "stage ", stage, " of a collective that is one kernel");
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  PLAIT_CUDA(cudaStreamIsCapturing(stream(), &capture));
  const bool now = capture == cudaStreamCaptureStatusNone;  // who launches a graph orders it
  if (now && launched_ && last_ != stream()) PLAIT_CUDA(cudaStreamWaitEvent(stream(), done_, 0));
  Grid grid{call.blocks, call.threads, size_t(call.shared)};
  grid.together = true;  // all blocks run at once, or one would wait for a peer's that waits for a place
  const int only = room_.split ? stage : -1;
  if (call.product) {
    try {
      launch_product(peers_, *call.product, only);
    } catch (...) {  // its peers have met this rank, and would wait for what it does not send
      abort();
      throw;
    }
  } else if (call.reduce)
    plait::launch(PLAIT_AT("a reduction of a device window"), call.reduce, grid, peers_, call.reduce_task, only);
  else
    plait::launch(PLAIT_AT("a move of a device window"), call.move, grid, peers_, call.move_task, only);
  if (now) {
    PLAIT_CUDA(cudaEventRecord(done_, stream()));
    launched_ = true, last_ = stream();
  }
  if (stage == 0) copied_ += call.copied;
}

// --- the host's words --------------------------------------------------------------------------------

void DeviceWindow::check() const {
  const FailureReport& r = *peers_.report;
  const Failure why = Failure(__atomic_load_n(&r.code, __ATOMIC_ACQUIRE));
  const std::string rank = "rank " + std::to_string(room_.rank), number = std::to_string(r.number);
  switch (why) {
    case Failure::none: return;
    case Failure::late:
      throw DeviceError(rank + " gave up waiting for rank " + std::to_string(r.peer) + " in " + r.own.text() + ", collective " +
                        number + " of this communicator, at its meeting " + std::to_string(r.stage));
    case Failure::aborted: {
      const uint32_t by = r.peer & 0xff, late = r.peer >> 8;
      throw DeviceError("rank " + std::to_string(by - 1) + " gave up a collective of this communicator" +
                        (late ? ": it waited for rank " + std::to_string(late - 1) : std::string()) + "; " + rank +
                        " ends in collective " + number);
    }
    case Failure::differs: {
      const std::string text = disagreement(room_.rank, r.own, int(r.peer), r.theirs) + ", collective " + number + " of this communicator";
      if (same_collective(r.own, r.theirs)) throw Disagreement(text);
      throw DeviceError(text);
    }
    case Failure::unbalanced: {
      std::string text = "an all_to_all in which not all ranks receive as much as is sent to them";
      if (int(r.peer) != room_.rank)
        text += ": rank " + std::to_string(r.peer) + " sends " + std::to_string(r.theirs.size) + " bytes to " + rank +
                ", which receives " + std::to_string(r.own.size);
      throw Disagreement(text);
    }
  }
}

int DeviceWindow::late_peer() const {
  const FailureReport& r = *peers_.report;
  const Failure why = Failure(__atomic_load_n(&r.code, __ATOMIC_ACQUIRE));
  if (why == Failure::late) return int(r.peer);
  return why == Failure::aborted ? int(r.peer >> 8) - 1 : -1;
}

bool DeviceWindow::idle() const { return !launched_ || cudaEventQuery(done_) != cudaErrorNotReady; }

void DeviceWindow::put(void* to, const void* from, int64_t bytes) {
  PLAIT_CUDA(cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDefault, side_));
  PLAIT_CUDA(cudaStreamSynchronize(side_));
}

void DeviceWindow::set_deadline(double seconds) {
  PLAIT_CHECK(seconds > 0 && seconds < 1e9, WINDOW, "a deadline of ", seconds, " s");
  const uint64_t limit = uint64_t(seconds * 1e9);
  put(&peers_.sticky(room_.rank)->limit, &limit, sizeof limit);
}

void DeviceWindow::abort() {
  const uint32_t by = uint32_t(room_.rank + 1);
  for (int rank = 0; rank < room_.size && open_; rank++) put(&peers_.sticky(rank)->aborted, &by, sizeof by);
}

void DeviceWindow::close() {
  if (open_ && launched_) PLAIT_CUDA(cudaEventSynchronize(done_));
  open_ = false;
}

}  // namespace plait
