// Device memory that the processes of a node map from each other (CUDA IPC).
//
// An arena is one plain cudaMalloc, never memory of a pool: a handle is of the base of an allocation, so what peers need
// besides is how far from its base an array lies. It does not grow, for every peer would have to map it again.
#pragma once
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "peer/free_list.hpp"

namespace plait {

// What tells whether two processes use one device, and how its owner can be reached.
struct DeviceIdentity {
  std::string uuid, bus, name;  // bus: where it is plugged in, such as 0000:19:00.0
};
DeviceIdentity device_identity();  // of the device in use
// Whether the device in use can read and write the memory of another: 1, 0, or -1 if this process does not see that one.
int reaches_device(const std::string& bus);

class DeviceArena {
 public:
  explicit DeviceArena(int64_t bytes);  // DeviceError if the device has not that much left
  ~DeviceArena();
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

  char* base() const { return base_; }
  int64_t bytes() const { return bytes_; }
  int64_t used() const;
  std::string handle() const;  // for DeviceMapping, in another process

  // The offset of `bytes` bytes, aligned to 256; -1 where there is no room. Memory that is released is for work that
  // follows on the same stream.
  int64_t allocate(int64_t bytes);
  void release(int64_t offset);
  // While work is recorded as a graph, which knows its addresses: what is allocated then is the next recording's again when
  // it is released, and nobody else's.
  void keep(bool on);
  // The last recording came to nothing: what it was the first to take is like any other memory again.
  void forget();
  // The offset of [p, p + bytes), or -1 if it is not inside this arena.
  int64_t find(const void* p, int64_t bytes) const;
  // Zeros, there when this returns: also for peers.
  void clear(int64_t offset, int64_t bytes);

 private:
  char* base_ = nullptr;
  int64_t bytes_;
  FreeList list_;
  bool keeping_ = false;
  std::map<int64_t, int64_t> kept_;            // offset -> bytes
  std::multimap<int64_t, int64_t> kept_free_;  // bytes -> offset
  std::vector<int64_t> recorded_;              // offsets that the last recording was the first to take
  mutable std::mutex mutex_;
};

// A peer's arena in the addresses of this process.
class DeviceMapping {
 public:
  explicit DeviceMapping(const std::string& handle);  // DeviceError with CUDA's words
  ~DeviceMapping() { close(); }
  DeviceMapping(const DeviceMapping&) = delete;
  DeviceMapping& operator=(const DeviceMapping&) = delete;
  char* base() const { return base_; }
  void close();  // before its owner frees it; may be called again

 private:
  char* base_ = nullptr;
};

}  // namespace plait
