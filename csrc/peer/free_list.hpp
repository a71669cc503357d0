// Which parts of a range of bytes are taken: first fit, what is free merged with its neighbours.
#pragma once
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>

#include "core/error.hpp"

namespace plait {

class FreeList {
 public:
  explicit FreeList(int64_t align) : align_(align) {}

  int64_t size() const { return size_; }
  const std::map<int64_t, int64_t>& free() const { return free_; }  // offset -> bytes
  // What `bytes` bytes take: arrays of no elements have a place of their own too.
  int64_t taken_by(int64_t bytes) const { return std::max<int64_t>(bytes + align_ - 1, align_) / align_ * align_; }
  // Where the free bytes at the end begin.
  int64_t tail() const {
    if (free_.empty()) return size_;
    const auto& [offset, bytes] = *std::prev(free_.end());
    return offset + bytes == size_ ? offset : size_;
  }

  // Makes the range longer.
  void extend(int64_t size) {
    const int64_t start = tail();
    if (size > start) free_[start] = size - start;
    size_ = size;
  }

  // The offset of `bytes` bytes, or -1 where no place is long enough.
  int64_t allocate(int64_t bytes) {
    const int64_t need = taken_by(bytes);
    const auto found = std::find_if(free_.begin(), free_.end(), [need](const auto& each) { return each.second >= need; });
    if (found == free_.end()) return -1;
    const auto [offset, size] = *found;
    free_.erase(found);
    if (size > need) free_[offset + need] = size - need;
    taken_[offset] = need;
    return offset;
  }

  // Frees what was allocated there; [start, stop) of what is free around it now.
  std::pair<int64_t, int64_t> release(int64_t offset) {
    const auto block = taken_.find(offset);
    PLAIT_CHECK(block != taken_.end(), "arena", "nothing is allocated at ", offset);
    int64_t start = block->first, stop = start + block->second;
    taken_.erase(block);
    auto after = free_.lower_bound(start);
    if (after != free_.end() && stop == after->first) {
      stop += after->second;
      after = free_.erase(after);
    }
    if (after != free_.begin() && std::prev(after)->first + std::prev(after)->second == start)
      start = std::prev(after)->first;
    free_[start] = stop - start;
    return {start, stop};
  }

 private:
  int64_t align_, size_ = 0;
  std::map<int64_t, int64_t> free_, taken_;  // offset -> bytes
};

}  // namespace plait
