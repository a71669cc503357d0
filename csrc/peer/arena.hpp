// Memory that the ranks of a node share: each rank owns one arena, and maps those of its peers.
//
// An arena is a memfd: it needs no /dev/shm, has no name and is gone with its last process. Its address range is
// reserved once, far larger than what is used; pages are added at the end as allocations need them, and peers see
// them without mapping again.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>

#include "peer/free_list.hpp"

namespace plait {

// A mapping of `reserve` bytes of a memfd; the pages beyond the file's end must not be touched yet.
class Mapping {
 public:
  Mapping(int fd, int64_t reserve);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  char* base() const { return base_; }
  int64_t reserve() const { return reserve_; }

 private:
  char* base_;
  int64_t reserve_;
};

class Arena {
 public:
  explicit Arena(int64_t reserve);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  int fd() const { return file_.fd; }
  char* base() const { return mapping_.base(); }
  int64_t reserve() const { return mapping_.reserve(); }
  int64_t used() const;     // bytes of the file
  int64_t present() const;  // of those, bytes that have memory behind them

  // Offset of `bytes` bytes, aligned to 64, with pages behind them. Throws ValueError if the machine has none left.
  int64_t allocate(int64_t bytes);
  void release(int64_t offset);
  // The offset of [p, p + bytes), or -1 if it is not inside this arena.
  int64_t find(const void* p, int64_t bytes) const;
  // Gives the memory of what is free back to the system, and of what is released from here on until the next allocate.
  void trim();

 private:
  void populate(int64_t start, int64_t stop);
  void fill(int64_t start, int64_t stop);
  void grow(int64_t size);
  void punch(int64_t start, int64_t stop);

  struct File {
    int fd;
    ~File();
  };

  File file_;
  Mapping mapping_;
  static constexpr int64_t ALIGN = 64;

  FreeList list_{ALIGN};  // as long as the file
  bool trimming_ = false;
  std::map<int64_t, int64_t> hollow_;  // start -> stop of pages without memory, all of them free
  mutable std::mutex mutex_;
};

// Of all arenas of this process, of all times.
void trim_arenas();
int64_t arena_bytes();
int64_t arena_calls();  // how often memory was taken from the system

}  // namespace plait
