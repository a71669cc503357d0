// The thread pool. Workers sleep between calls: with more ranks than cores a spinning thread starves its peers.
#include "cpu/threads.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <pthread.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "core/error.hpp"

namespace plait {
namespace {

class Pool {
 public:
  ~Pool() { resize(1); }

  int size() const { return size_.load(std::memory_order_relaxed); }

  void resize(int threads) {
    std::lock_guard<std::mutex> only_one(call_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& w : workers_) w.join();
    workers_.clear();
    stop_ = false;
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, start = generation_] { work(start); });
    size_ = threads;
  }

  void run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    reset_rounding();
    int64_t ranges = std::min<int64_t>(size(), (n + grain - 1) / std::max<int64_t>(grain, 1));
    if (ranges <= 1) {
      if (n > 0) body(0, n);
      return;
    }
    std::unique_lock<std::mutex> only_one(call_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      n_ = n, ranges_ = ranges, body_ = &body, next_ = 0, left_ = ranges, error_ = nullptr;
      generation_++;
    }
    wake_.notify_all();
    take_ranges();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0 && inside_ == 0; });
    body_ = nullptr;
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void take_ranges() {
    for (;;) {
      int64_t i = next_.fetch_add(1);
      if (i >= ranges_) return;
      try {
        (*body_)(n_ * i / ranges_, n_ * (i + 1) / ranges_);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        error_ = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(mutex_);
      if (--left_ == 0) done_.notify_all();
    }
  }

  void work(uint64_t seen) {
    reset_rounding();
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || (generation_ != seen && body_); });
      if (stop_) return;
      seen = generation_;
      inside_++;
      lock.unlock();
      take_ranges();
      lock.lock();
      if (--inside_ == 0) done_.notify_all();
    }
  }

  std::vector<std::thread> workers_;
  std::atomic<int> size_{1};
  std::mutex mutex_, call_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t, int64_t)>* body_ = nullptr;
  int64_t n_ = 0, ranges_ = 0, left_ = 0;
  int inside_ = 0;
  std::atomic<int64_t> next_{0};
  std::exception_ptr error_;
  uint64_t generation_ = 0;
  bool stop_ = false;
};

// Never destroyed: threads must not be joined while the process exits. A forked child has none of its parent's
// threads, and locks as they were: it starts with a pool of its own.
std::atomic<Pool*> current{nullptr};

Pool& pool() {
  static const bool made = [] {
    current = new Pool;
    pthread_atfork(nullptr, nullptr, [] { current = new Pool; });
    return true;
  }();
  (void)made;
  return *current;
}

}  // namespace

// Another library linked with -ffast-math may have set flush-to-zero for this thread.
void reset_rounding() {
#if defined(__x86_64__)
  _mm_setcsr(0x1f80);
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" : : "r"(uint64_t(0)));
#endif
}

void flush_denormals() {
#if defined(__x86_64__)
  _mm_setcsr(0x1f80 | 0x8040);
#elif defined(__aarch64__)
  asm volatile("msr fpsr, xzr\n\tmsr fpcr, %0" : : "r"(uint64_t(1) << 24));
#endif
}

bool flushed_too_much() {
#if defined(__x86_64__)
  return false;
#elif defined(__aarch64__)
  uint64_t status;
  asm volatile("mrs %0, fpsr" : "=r"(status));
  return status >> 3 & 1;  // underflow: some result was flushed
#else
  return true;  // nothing was flushed
#endif
}

void set_threads(int threads) {
  PLAIT_CHECK(threads >= 1, "set_threads", "needs at least 1, got ", threads);
  pool().resize(threads);
}

int threads() { return pool().size(); }

void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  pool().run(n, grain, body);
}

}  // namespace plait
