// A caching pool: memory of arrays that were freed goes to the next ones, so that steps after the
// first meet no page faults. Blocks of one size class are reused, the last freed first.
#pragma once
#include <cstdint>

namespace plait {

struct MemoryUse {
  int64_t reserved;         // bytes held from the system
  int64_t used;             // of those, bytes in arrays
  int64_t system_calls;     // how often memory was taken from the system
  double prefault_seconds;  // what it took to make it present
};

struct MemoryBlock {
  void* data;
  int64_t bytes;  // of its size class
};

// At least `bytes`, aligned to 4096; throws std::bad_alloc. Contents are undefined.
MemoryBlock take_memory(int64_t bytes);
void give_memory(const MemoryBlock& block) noexcept;
// Gives what no array uses back to the system, and what is freed from here on, until the next take.
void trim_memory();
MemoryUse memory_use();

}  // namespace plait
