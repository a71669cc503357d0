#include "cpu/memory.hpp"

#include <chrono>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include <pthread.h>
#include <sys/mman.h>

namespace plait {
namespace {

constexpr int64_t PAGE = 4096, HUGE_PAGE = 2 << 20;
constexpr int64_t SLAB = 32 << 20;  // smaller blocks are cut from slabs, so that huge pages fit them

// Eight classes to each doubling: at most an eighth is lost.
int64_t size_class(int64_t bytes) {
  int64_t step = PAGE;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

int64_t round_up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

struct Slab {
  int64_t bytes;
  int64_t cut = 0;      // how far blocks have been cut from it
  int64_t in_use = 0;  // bytes of blocks in arrays
};

class MemoryPool {
 public:
  MemoryBlock take(int64_t bytes) {
    bytes = size_class(bytes);
    std::lock_guard<std::mutex> lock(mutex_);
    trimming_ = false;
    std::vector<char*>& free = free_[bytes];
    char* data;
    if (free.empty()) {
      data = cut(bytes);
    } else {
      data = free.back();
      free.pop_back();
    }
    slab_of(data).in_use += bytes;
    use_.used += bytes;
    return {data, bytes};
  }

  void give(const MemoryBlock& block) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto* data = static_cast<char*>(block.data);
    slab_of(data).in_use -= block.bytes;
    use_.used -= block.bytes;
    free_[block.bytes].push_back(data);
    if (trimming_ && slab_of(data).in_use == 0) release_unused();
  }

  void trim() {
    std::lock_guard<std::mutex> lock(mutex_);
    trimming_ = true;
    release_unused();
  }

  MemoryUse use() {
    std::lock_guard<std::mutex> lock(mutex_);
    return use_;
  }

  // Of a forked child: whoever held the lock is not there.
  void forget_lock() { new (&mutex_) std::mutex; }

 private:
  Slab& slab_of(char* data) { return std::prev(slabs_.upper_bound(data))->second; }

  char* cut(int64_t bytes) {
    auto found = slabs_.end();
    if (bytes < SLAB)
      for (auto it = slabs_.begin(); it != slabs_.end(); ++it)
        if (it->second.bytes - it->second.cut >= bytes) found = it;
    if (found == slabs_.end()) found = reserve(bytes < SLAB ? SLAB : round_up(bytes, HUGE_PAGE));
    char* data = found->first + found->second.cut;
    found->second.cut += bytes;
    make_present(data, bytes);
    return data;
  }

  std::map<char*, Slab>::iterator reserve(int64_t bytes) {
    // One huge page more than asked for, and what lies before and behind the aligned part goes back.
    void* got = mmap(nullptr, size_t(bytes + HUGE_PAGE), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) throw std::bad_alloc();
    auto* start = static_cast<char*>(got);
    auto* aligned = reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(start), HUGE_PAGE));
    if (aligned > start) munmap(start, size_t(aligned - start));
    munmap(aligned + bytes, size_t(start + HUGE_PAGE - aligned));
    madvise(aligned, size_t(bytes), MADV_HUGEPAGE);
    use_.reserved += bytes;
    use_.system_calls++;
    return slabs_.emplace(aligned, Slab{bytes}).first;
  }

  void make_present(char* data, int64_t bytes) {
    const auto begin = std::chrono::steady_clock::now();
#if defined(MADV_POPULATE_WRITE)
    const bool done = madvise(data, size_t(bytes), MADV_POPULATE_WRITE) == 0;
#else
    const bool done = false;
#endif
    for (int64_t i = 0; !done && i < bytes; i += PAGE) static_cast<volatile char*>(data)[i] = 0;
    use_.prefault_seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  void release_unused() {
    for (auto& [bytes, free] : free_) {
      size_t kept = 0;
      for (char* data : free)
        if (slab_of(data).in_use > 0) free[kept++] = data;
      free.resize(kept);
    }
    for (auto it = slabs_.begin(); it != slabs_.end();) {
      if (it->second.in_use > 0) {
        ++it;
        continue;
      }
      munmap(it->first, size_t(it->second.bytes));
      use_.reserved -= it->second.bytes;
      it = slabs_.erase(it);
    }
  }

  std::mutex mutex_;
  std::map<char*, Slab> slabs_;                    // by where they begin
  std::map<int64_t, std::vector<char*>> free_;  // by size class
  MemoryUse use_{};
  bool trimming_ = false;
};

// Never destroyed: arrays may outlive everything.
MemoryPool& pool() {
  static MemoryPool* const made = [] {
    static MemoryPool* p = new MemoryPool;
    pthread_atfork(nullptr, nullptr, [] { p->forget_lock(); });
    return p;
  }();
  return *made;
}

}  // namespace

MemoryBlock take_memory(int64_t bytes) { return pool().take(bytes < 1 ? 1 : bytes); }
void give_memory(const MemoryBlock& block) noexcept { pool().give(block); }
void trim_memory() { pool().trim(); }
MemoryUse memory_use() { return pool().use(); }

}  // namespace plait
