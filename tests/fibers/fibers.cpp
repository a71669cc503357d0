#include "fibers.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "baton.hpp"
#include "cuda_runtime.h"

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

// Keeps the callee-saved registers on the stack it leaves and takes those of the stack it enters.
extern "C" void fiber_switch(void** save, void* load);
asm(R"(
.text
.type fiber_switch, @function
fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fiber_switch, .-fiber_switch
.section .note.GNU-stack,"",@progbits
.text
)");

namespace fibers {
namespace {

constexpr size_t STACK = 128 * 1024;

struct Barrier {
  int arrived = 0, expected = 0;
  uint64_t passed = 0;
};
struct Meeting {  // lanes of one mask
  unsigned arrived = 0;
  const char* operation = nullptr;
  uint64_t passed = 0;
  Lanes given, result[2];
};
struct Block {
  uint3 index;
  int alive = 0;
  std::vector<unsigned char> shared;
  Barrier all;
  bool any[2];  // of sync_threads_or, by parity of all.passed
  std::map<int, Barrier> named;
  size_t number = 0, cluster = 0;  // of those that run now; the first of its cluster
  std::map<std::pair<int, unsigned>, Meeting> meetings;  // by warp and mask
};
struct Fiber {
  void* stack_pointer;
  Block* block;
  int index;
  bool done, waiting;
  const char* at;
  std::function<bool()> ready;
  LateCopies late;
};

uint64_t order_ = 0;
struct Stacks : std::vector<void*> {
  ~Stacks() {
    for (void* stack : *this) munmap(stack, STACK);
  }
};
thread_local Stacks stacks;
thread_local std::vector<Fiber> all;
thread_local Fiber* current;
thread_local void* scheduler;
thread_local const std::function<void()>* body_;
thread_local std::exception_ptr failure;
thread_local std::vector<std::unique_ptr<Block>> blocks_;  // that run now: a cluster, or the whole grid
thread_local std::map<size_t, Barrier> cluster_barriers;
thread_local size_t cluster_size = 1;
thread_local dim3 threads_;
thread_local std::vector<std::function<void()>> late, ends;  // asynchronous operations; checks at the cluster's end
thread_local std::mt19937_64 chance;
thread_local uint64_t clusters = 0;
thread_local bool together_ = false, spinning = false;  // blocks of a grid; the last turn ended in spin()

void enter(Fiber& fiber) {
  current = &fiber;
  const unsigned t = unsigned(fiber.index);
  threadIdx = {t % threads_.x, t / threads_.x % threads_.y, t / threads_.x / threads_.y};
  blockIdx = fiber.block->index;
  fiber_switch(&scheduler, fiber.stack_pointer);
}

void leave() { fiber_switch(&current->stack_pointer, scheduler); }

extern "C" void fiber_main() {
  try {
    (*body_)();
  } catch (...) {
    failure = std::current_exception();
  }
  current->done = true;
  current->block->alive--;
  for (;;) leave();
}

void* new_stack(size_t number) {
  while (stacks.size() <= number) {
    void* p = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    stacks.push_back(p);
  }
  // Six registers, the address that fiber_switch returns to, and a place where fiber_main's caller would be.
  void** top = reinterpret_cast<void**>(static_cast<char*>(stacks[number]) + STACK) - 8;
  std::fill(top, top + 8, nullptr);
  top[6] = reinterpret_cast<void*>(&fiber_main);
  return top;
}

[[noreturn]] void stuck() {
  std::map<std::string, int> where;
  for (const Fiber& f : all)
    if (!f.done) where[f.at]++;
  std::ostringstream text;
  text << "no thread can go on:";
  for (const auto& [at, count] : where) text << " " << count << " wait at " << at << ";";
  throw std::logic_error(text.str());
}

bool take_turn(Fiber& f) {
  if (f.done || (f.waiting && !f.ready())) return false;
  f.waiting = spinning = false;
  enter(f);
  if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
  if (together_ && order_ > 1 && chance() % 32 == 0) Baton::pass();
  return true;
}

// Order 0 keeps warps in step; in the others each goes on alone as long as it can.
// No thread can go on but for what is asynchronous: one of that happens.
void finish_late(std::mt19937_64& random) {
  if (late.empty()) stuck();
  const size_t which = order_ > 1 ? random() % late.size() : 0;
  const auto operation = late[which];
  late.erase(late.begin() + long(which));
  operation();
}

void run_cluster() {
  std::mt19937_64 random(order_);
  chance.seed(order_);
  const size_t together = order_ == 0 ? all.size() : 32;
  std::vector<size_t> groups((all.size() + together - 1) / together), turns;
  for (size_t g = 0; g < groups.size(); g++) groups[g] = order_ == 1 ? groups.size() - 1 - g : g;
  for (bool moved = true, left = true, spun = false; left;) {
    if (!moved && spun && late.empty())
      Baton::pass();
    else if (!moved)
      finish_late(random);
    spun = false;
    if (order_ > 1) std::shuffle(groups.begin(), groups.end(), random);
    moved = left = false;
    for (size_t g : groups) {
      turns.clear();
      for (size_t i = g * together; i < std::min(all.size(), (g + 1) * together); i++) turns.push_back(i);
      if (order_ == 1) std::reverse(turns.begin(), turns.end());
      if (order_ > 1) std::shuffle(turns.begin(), turns.end(), random);
      for (bool again = true; again;) {
        again = false;
        for (size_t i : turns) {
          const bool turn = take_turn(all[i]);
          again = again || (turn && !spinning);
          spun = spun || (turn && spinning);
        }
        moved = moved || again;
        if (order_ == 0) break;
      }
      for (size_t i : turns) left = left || !all[i].done;
    }
  }
  if (!late.empty()) throw std::logic_error("a cluster ended without waiting for what it had started");
  for (const auto& check : ends) check();
  ends.clear();
}

void sync(Barrier& barrier, const char* at, const std::function<int()>& expected) {
  const uint64_t mine = barrier.passed;
  barrier.arrived++;
  Barrier* const b = &barrier;
  wait_until(at, [=] {
    if (b->passed == mine && b->arrived >= expected()) b->arrived = 0, b->passed++;
    return b->passed != mine;
  });
}

}  // namespace

void set_order(uint64_t order) { order_ = order; }
uint64_t order() { return order_; }

void wait_until(const char* what, const std::function<bool()>& condition) {
  while (!condition()) {
    current->waiting = true;
    current->at = what;
    current->ready = condition;
    leave();
  }
}

void spin() {
  if (!together_) throw std::logic_error("a kernel that spins, not launched to run together");
  spinning = true;
  current->waiting = false;
  current->at = "spin";
  leave();
}

void later(std::function<void()> operation) {
  if (order_ == 1 || (order_ > 1 && chance() % 2))
    operation();
  else
    late.push_back(std::move(operation));
}
void at_end(std::function<void()> check) { ends.push_back(std::move(check)); }

void sync_threads() {
  Block* const block = current->block;  // threads that are gone count as arrived
  sync(block->all, "__syncthreads", [=] { return block->alive; });
}
bool sync_threads_or(bool x) {
  Block* const block = current->block;
  bool& any = block->any[block->all.passed % 2];
  any = (any && block->all.arrived) || x;
  sync_threads();
  return any;
}
void sync_named(int barrier, int threads) {
  sync(current->block->named[barrier], "a named barrier", [=] { return threads; });
}
void sync_cluster() {
  const size_t first = current->block->cluster;
  sync(cluster_barriers[first], "a barrier of the cluster", [=] {
    int alive = 0;
    for (size_t i = first; i < first + cluster_size; i++) alive += blocks_[i]->alive;
    return alive;
  });
}

const Lanes& exchange(unsigned mask, const char* operation, const void* value, int bytes) {
  const int lane = current->index % 32;
  if (!(mask >> lane & 1)) throw std::logic_error(std::string(operation) + ": the lane is not in its own mask");
  Meeting& meeting = current->block->meetings[{current->index / 32, mask}];
  if (meeting.arrived && std::strcmp(meeting.operation, operation))
    throw std::logic_error(std::string("lanes of a warp meet at ") + meeting.operation + " and " + operation);
  meeting.operation = operation;
  std::memcpy(meeting.given.value[lane], value, size_t(bytes));
  meeting.arrived |= 1u << lane;
  const uint64_t mine = meeting.passed;
  Meeting* const m = &meeting;
  if (m->arrived == mask) {
    m->result[mine % 2] = m->given;
    m->arrived = 0;
    m->passed++;
  }
  wait_until(operation, [=] { return m->passed != mine; });
  return m->result[mine % 2];
}

unsigned char* shared_memory() { return current->block->shared.data(); }
unsigned char* shared_memory(unsigned rank) { return blocks_.at(current->block->cluster + rank)->shared.data(); }
unsigned cluster_rank() { return unsigned(current->block->index.x % cluster_size); }
size_t block_number() { return current->block->number; }
uint64_t cluster_number() { return clusters; }
int thread_index() { return current->index; }
LateCopies& late_copies() { return current->late; }

namespace {

void start(const Size& blocks, const Size& threads, unsigned cluster, int64_t shared_bytes, const std::function<void()>& body) {
  if (blocks.x % cluster) throw std::logic_error("blocks along x are no multiple of the cluster");
  const size_t per_block = size_t(threads.x) * threads.y * threads.z;
  if (!per_block || per_block > 1024) throw std::logic_error("a block of " + std::to_string(per_block) + " threads");
  if (shared_bytes > 227 * 1024) throw std::logic_error("more shared memory than a block can have");
  gridDim = {blocks.x, blocks.y, blocks.z};
  blockDim = threads_ = {threads.x, threads.y, threads.z};
  body_ = &body;
  cluster_size = cluster;
}

void clear() {
  blocks_.clear();
  all.clear();
  late.clear();
  ends.clear();
  clusters++;
  cluster_barriers.clear();
}

void add_block(const uint3& index, int64_t shared_bytes) {
  const size_t per_block = size_t(threads_.x) * threads_.y * threads_.z;
  blocks_.push_back(std::make_unique<Block>());
  Block& block = *blocks_.back();
  block.index = index;
  block.number = blocks_.size() - 1;
  block.cluster = block.number / cluster_size * cluster_size;
  block.alive = int(per_block);
  block.shared.assign(size_t(shared_bytes) + 1024, 0xff);  // NaN: nothing may count on zeros
  for (size_t t = 0; t < per_block; t++)
    all.push_back({new_stack((blocks_.size() - 1) * per_block + t), &block, int(t), false, false, "", {}, {}});
}

}  // namespace

void run_grid(const Size& blocks, const Size& threads, unsigned cluster, int64_t shared_bytes, const std::function<void()>& body) {
  start(blocks, threads, cluster, shared_bytes, body);
  for (unsigned z = 0; z < blocks.z; z++)
    for (unsigned y = 0; y < blocks.y; y++)
      for (unsigned x = 0; x < blocks.x; x += cluster) {
        clear();
        for (unsigned c = 0; c < cluster; c++) add_block({x + c, y, z}, shared_bytes);
        run_cluster();
      }
}

void run_together(const Size& blocks, const Size& threads, unsigned cluster, int64_t shared_bytes,
                  const std::function<void()>& body) {
  const Baton baton;
  start(blocks, threads, cluster, shared_bytes, body);
  clear();
  for (unsigned z = 0; z < blocks.z; z++)
    for (unsigned y = 0; y < blocks.y; y++)
      for (unsigned x = 0; x < blocks.x; x++) add_block({x, y, z}, shared_bytes);
  together_ = true;
  try {
    run_cluster();
  } catch (...) {
    together_ = false;
    throw;
  }
  together_ = false;
}

}  // namespace fibers
