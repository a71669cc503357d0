// First fit over a file that grows. Freed blocks keep their pages: what a step needs, the next step needs again.
#include "peer/arena.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.hpp"

namespace plait {
namespace {

constexpr int64_t ALIGN = 64;
constexpr int64_t GROWTH = int64_t(4) << 20;

int create_memfd() {
  const int fd = memfd_create("plait-arena", MFD_CLOEXEC);
  PLAIT_CHECK(fd >= 0, "arena", "memfd_create failed: ", std::strerror(errno));
  return fd;
}

}  // namespace

Mapping::Mapping(int fd, int64_t reserve) : reserve_(reserve) {
  void* p = mmap(nullptr, size_t(reserve), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  PLAIT_CHECK(p != MAP_FAILED, "arena", "cannot map ", reserve, " bytes of address space: ", std::strerror(errno),
              " (ulimit -v?)");
  madvise(p, size_t(reserve), MADV_DONTFORK);
  base_ = static_cast<char*>(p);
}

Mapping::~Mapping() { munmap(base_, size_t(reserve_)); }

Arena::File::~File() { close(fd); }

Arena::Arena(int64_t reserve) : file_{create_memfd()}, mapping_(file_.fd, reserve) {}

int64_t Arena::used() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return size_;
}

void Arena::grow(int64_t size) {
  size = std::min((size + GROWTH - 1) / GROWTH * GROWTH, reserve());
  int error;
  do {
    error = posix_fallocate(file_.fd, size_, size - size_);
  } while (error == EINTR);
  PLAIT_CHECK(error == 0, "arena", "no memory for ", size, " shared bytes: ", std::strerror(error));
#ifdef MADV_POPULATE_WRITE
  madvise(base() + size_, size_t(size - size_), MADV_POPULATE_WRITE);  // older kernels fault at first touch instead
#endif
  const int64_t start = size_;
  size_ = size;
  auto last = free_.empty() ? free_.end() : std::prev(free_.end());
  if (last != free_.end() && last->first + last->second == start)
    last->second += size - start;
  else
    free_[start] = size - start;
}

int64_t Arena::allocate(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  PLAIT_CHECK(bytes >= 0 && bytes <= reserve() - ALIGN, "arena", "cannot hold an array of ", bytes,
              " bytes, it has room for ", reserve());
  const int64_t need = std::max<int64_t>(bytes + ALIGN - 1, ALIGN) / ALIGN * ALIGN;
  auto fits = [need](const auto& block) { return block.second >= need; };
  auto found = std::find_if(free_.begin(), free_.end(), fits);
  if (found == free_.end()) {
    auto last = free_.empty() ? free_.end() : std::prev(free_.end());
    const bool at_end = last != free_.end() && last->first + last->second == size_;
    const int64_t end = (at_end ? last->first : size_) + need;
    PLAIT_CHECK(end <= reserve(), "arena", "cannot hold ", bytes, " more bytes: ", size_, " of ", reserve(), " used");
    grow(end);
    found = std::find_if(free_.begin(), free_.end(), fits);
  }
  const int64_t offset = found->first, rest = found->second - need;
  free_.erase(found);
  if (rest > 0) free_[offset + need] = rest;
  taken_[offset] = need;
  return offset;
}

void Arena::release(int64_t offset) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto block = taken_.find(offset);
  PLAIT_CHECK(block != taken_.end(), "arena", "nothing is allocated at ", offset);
  int64_t start = block->first, bytes = block->second;
  taken_.erase(block);
  auto after = free_.lower_bound(start);
  if (after != free_.end() && start + bytes == after->first) {
    bytes += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin()) {
    auto before = std::prev(after);
    if (before->first + before->second == start) {
      before->second += bytes;
      return;
    }
  }
  free_[start] = bytes;
}

int64_t Arena::find(const void* p, int64_t bytes) const {
  const char* start = static_cast<const char*>(p);
  if (start < base() || start + bytes > base() + reserve()) return -1;
  return start - base();
}

}  // namespace plait
