// CUDA's threads as fibers of one CPU thread: a block's threads run in turn, each until it waits for others.
//
// What is found out here and not on a GPU: threads that wait at different places for ever, lanes of a warp that meet at
// different operations, and (by running the fibers in another order) shared memory that is read without a barrier.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace fibers {

struct Size {
  unsigned x, y, z;
};

// Runs body once for every thread of the grid; blocks of a cluster (along x) run together. Throws what body throws, and
// std::logic_error if no thread can go on.
void run_grid(const Size& blocks, const Size& threads, unsigned cluster, int64_t shared_bytes, const std::function<void()>& body);
// All blocks run together, and may spin: ranks are OS threads (or processes), each with a kernel of its own, and one of them
// runs at a time. In orders above 1 they take turns at random.
void run_together(const Size& blocks, const Size& threads, unsigned cluster, int64_t shared_bytes,
                  const std::function<void()>& body);

// In which order runnable threads take turns: 0 ascending, all in step; 1 descending, others a shuffle of their own, and
// there each warp goes on alone as long as it can. Copies that run beside a thread are made when it waits; in order 1 at once.
// What is asynchronous to all threads happens as late as can be for 0, at once for 1, at random for others.
void set_order(uint64_t order);
uint64_t order();

// --- for code that runs on a fiber -----------------------------------------------------------------------
constexpr int LANE_BYTES = 64;
struct Lanes {
  unsigned char value[32][LANE_BYTES];
};

void sync_threads();
bool sync_threads_or(bool x);  // whether x holds for any of them
void sync_named(int barrier, int threads);
void sync_cluster();
// Waits for all lanes of mask, which must give the same operation, and returns what each of them gave.
const Lanes& exchange(unsigned mask, const char* operation, const void* value, int bytes);
// Lets others run until condition() holds; throws if it never does.
void wait_until(const char* what, const std::function<bool()>& condition);
// Between two looks at memory that another kernel writes: other threads run, and other ranks if none can go on.
void spin();
// Something asynchronous, which the hardware does at some time from now on. The cluster must wait for it before it ends.
void later(std::function<void()> operation);
// Called once, when all threads of this cluster have ended.
void at_end(std::function<void()> check);
unsigned char* shared_memory();                   // of this block
unsigned char* shared_memory(unsigned rank);      // of a block of this cluster
unsigned cluster_rank();
size_t block_number();                            // among the blocks that run now
uint64_t cluster_number();                        // how many clusters have run before, of all kernels
int thread_index();                               // x fastest

// Copies that this thread has started and not waited for: groups has where each committed group of them ends.
struct LateCopies {
  struct Copy {
    void* to;
    const void* from;
    int bytes, size;  // zeros from bytes to size
  };
  std::vector<Copy> copies;
  std::vector<size_t> groups;
};
LateCopies& late_copies();

}  // namespace fibers
