// How many blocks and threads a collective takes, and where arrays lie: what all calls of a device's window share.
#pragma once
#include <algorithm>

#include "core/array.hpp"
#include "peer/device_call.hpp"

namespace plait {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// For what one rank moves or adds.
inline unsigned blocks_of(const DeviceRoom& room, int64_t bytes) {
  return unsigned(std::min<int64_t>(std::max<int64_t>(1, ceil_div(bytes, room.tuning.block_bytes)), room.grid));
}
inline unsigned threads_of(int64_t bytes) {
  return unsigned(std::min<int64_t>(MOST_THREADS, std::max<int64_t>(32, round_up(ceil_div(bytes, 16), 32))));
}
// Whether an array is read where it lies, and held until all have read it; else it is staged.
inline bool worth_an_exit(const DeviceRoom& room, int64_t bytes) { return bytes > room.tuning.once_bytes / room.size; }

inline int64_t offset_in(const DeviceRoom& room, const void* data, int64_t bytes) {
  const char* const p = static_cast<const char*>(data);
  return bytes > 0 && p >= room.base && p + bytes <= room.base + room.bytes ? p - room.base : -1;
}
inline bool overlap(const ConstArray& x, const ConstArray& y) {
  const char *a = static_cast<const char*>(x.data), *b = static_cast<const char*>(y.data);
  const int64_t n = x.size() * size_of(x.dtype), m = y.size() * size_of(y.dtype);
  return n > 0 && m > 0 && a < b + m && b < a + n;
}

}  // namespace plait
