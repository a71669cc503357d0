// First fit over a file that grows. Freed blocks keep their pages until a trim: what a step needs, the next step needs
// again.
#include "peer/arena.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <set>

#include "core/error.hpp"

namespace plait {
namespace {

constexpr int64_t GROWTH = int64_t(4) << 20;
constexpr int64_t PAGE = 4096;

std::mutex all_mutex;
std::set<Arena*> all;
std::atomic<int64_t> calls{0};

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

Arena::Arena(int64_t reserve) : file_{create_memfd()}, mapping_(file_.fd, reserve) {
  std::lock_guard<std::mutex> lock(all_mutex);
  all.insert(this);
}

Arena::~Arena() {
  std::lock_guard<std::mutex> lock(all_mutex);
  all.erase(this);
}

int64_t Arena::used() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return list_.size();
}

int64_t Arena::present() const {
  struct stat status;
  return fstat(file_.fd, &status) == 0 ? int64_t(status.st_blocks) * 512 : 0;
}

void Arena::populate(int64_t start, int64_t stop) {
  calls++;
  int error;
  do {
    error = posix_fallocate(file_.fd, start, stop - start);
  } while (error == EINTR);
  PLAIT_CHECK(error == 0, "arena", "no memory for ", stop - start, " shared bytes: ", std::strerror(error));
#ifdef MADV_POPULATE_WRITE
  madvise(base() + start, size_t(stop - start), MADV_POPULATE_WRITE);  // older kernels fault at first touch instead
#endif
}

// Puts memory behind all pages of a free range.
void Arena::fill(int64_t start, int64_t stop) {
  start = start / PAGE * PAGE;
  stop = (stop + PAGE - 1) / PAGE * PAGE;
  auto next = hollow_.upper_bound(start);
  if (next != hollow_.begin() && std::prev(next)->second > start) --next;
  while (next != hollow_.end() && next->first < stop) {
    const auto [low, high] = *next;
    populate(std::max(low, start), std::min(high, stop));
    next = hollow_.erase(next);
    if (low < start) hollow_[low] = start;
    if (high > stop) hollow_[stop] = high;
  }
}

void Arena::grow(int64_t size) {
  size = std::min((size + GROWTH - 1) / GROWTH * GROWTH, reserve());
  populate(list_.size(), size);
  list_.extend(size);
}

int64_t Arena::allocate(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  PLAIT_CHECK(bytes >= 0 && bytes <= reserve() - ALIGN, "arena", "cannot hold an array of ", bytes,
              " bytes, it has room for ", reserve());
  trimming_ = false;
  int64_t offset = list_.allocate(bytes);
  if (offset < 0) {
    const int64_t end = list_.tail() + list_.taken_by(bytes);
    PLAIT_CHECK(end <= reserve(), "arena", "cannot hold ", bytes, " more bytes: ", list_.size(), " of ", reserve(), " used");
    grow(end);
    offset = list_.allocate(bytes);
  }
  fill(offset, offset + list_.taken_by(bytes));
  return offset;
}

void Arena::release(int64_t offset) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto [start, stop] = list_.release(offset);
  if (trimming_) punch(start, stop);
}

// Takes the memory from the whole pages of a free range.
void Arena::punch(int64_t start, int64_t stop) {
  start = (start + PAGE - 1) / PAGE * PAGE;
  stop = stop / PAGE * PAGE;
  if (start >= stop || fallocate(file_.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, stop - start)) return;
  hollow_.erase(hollow_.lower_bound(start), hollow_.lower_bound(stop));
  hollow_[start] = stop;
}

void Arena::trim() {
  std::lock_guard<std::mutex> lock(mutex_);
  trimming_ = true;
  for (const auto& [offset, bytes] : list_.free()) punch(offset, offset + bytes);
}

int64_t Arena::find(const void* p, int64_t bytes) const {
  const char* start = static_cast<const char*>(p);
  if (start < base() || start + bytes > base() + reserve()) return -1;
  return start - base();
}

void trim_arenas() {
  std::lock_guard<std::mutex> lock(all_mutex);
  for (Arena* arena : all) arena->trim();
}

int64_t arena_bytes() {
  std::lock_guard<std::mutex> lock(all_mutex);
  int64_t bytes = 0;
  for (const Arena* arena : all) bytes += arena->present();
  return bytes;
}

int64_t arena_calls() { return calls; }

}  // namespace plait
