// Working memory that a thread keeps between calls: kernels meet no fresh pages. It only grows.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

namespace plait {

// Use as `thread_local Scratch panel;`. Contents are undefined; a later, larger request moves the
// block.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  template <class T>
  T* get(int64_t count) {
    size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
    if (bytes > bytes_) {
      std::free(data_);
      bytes_ = 0;
      data_ = std::aligned_alloc(64, bytes);
      if (!data_) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace plait
