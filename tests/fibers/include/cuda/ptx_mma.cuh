// cuda/ptx_mma.cuh on fibers, by PTX's description of fragments; copies happen as late as a wait allows.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "core/dtype.hpp"
#include "cuda_runtime.h"
#include "fibers.hpp"

namespace plait {

using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* p) {
  return reinterpret_cast<uintptr_t>(p);
}

// The sixteen products and c are added in double, then rounded once.
inline void mma(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const auto& lanes = fibers::exchange(0xffffffffu, "mma", mine, sizeof mine);
  const int lane = fibers::thread_index() % 32, g = lane / 4, q = lane % 4;
  auto half = [&](int from, int word, int high) {
    uint16_t bits;
    std::memcpy(&bits, lanes.value[from] + word * 4 + high * 2, 2);
    return to_float(bfloat16{bits});
  };
  auto sum = [&](float c, int row, int column) {
    double total = double(c);
    for (int k = 0; k < 16; k++) {
      const int low = k % 8 / 2, far = k / 8;
      total += double(half(row % 8 * 4 + low, far * 2 + row / 8, k % 2)) * double(half(column * 4 + low, 4 + far, k % 2));
    }
    return float(total);
  };
  c0 = sum(c0, g, 2 * q), c1 = sum(c1, g, 2 * q + 1), c2 = sum(c2, g + 8, 2 * q), c3 = sum(c3, g + 8, 2 * q + 1);
}

inline void load_matrices_of(uint32_t (&x)[4], SharedAddress row, bool transposed) {
  if (row % 16) throw std::logic_error("ldmatrix: a row is not aligned to 16 bytes");
  const auto& lanes = fibers::exchange(0xffffffffu, transposed ? "ldmatrix.trans" : "ldmatrix", &row, sizeof row);
  const int lane = fibers::thread_index() % 32, g = lane / 4, q = lane % 4;
  for (int i = 0; i < 4; i++) {
    uint16_t pair[2];
    for (int high = 0; high < 2; high++) {
      const int r = transposed ? 2 * q + high : g, column = transposed ? g : 2 * q + high;
      const auto at = fiber_lane<SharedAddress>(lanes, i * 8 + r);
      std::memcpy(&pair[high], reinterpret_cast<const uint16_t*>(at) + column, 2);
    }
    std::memcpy(&x[i], pair, 4);
  }
}
inline void load_matrices(uint32_t (&x)[4], SharedAddress row) {
  load_matrices_of(x, row, false);
}
inline void load_matrices_transposed(uint32_t (&x)[4], SharedAddress row) {
  load_matrices_of(x, row, true);
}

inline void copy_now(const fibers::LateCopies::Copy& c) {
  std::memset(c.to, 0, size_t(c.size));
  if (c.bytes) std::memcpy(c.to, c.from, size_t(c.bytes));
}
inline void copy_later(const fibers::LateCopies::Copy& c) {
  const auto misplaced = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % size_t(c.size) != 0; };
  if (misplaced(c.to) || (c.bytes && misplaced(c.from))) throw std::logic_error("cp.async: not aligned");
  if (c.bytes < 0 || c.bytes > c.size) throw std::logic_error("cp.async: more than its size");
  fibers::order() == 1 ? copy_now(c) : fibers::late_copies().copies.push_back(c);
}
inline void copy_async(SharedAddress to, const void* from, int bytes) {
  copy_later({reinterpret_cast<void*>(to), from, bytes, 16});
}
inline void copy_word_async(SharedAddress to, const void* from, bool there) {
  copy_later({reinterpret_cast<void*>(to), from, there ? 4 : 0, 4});
}
inline void commit_copies() {
  fibers::late_copies().groups.push_back(fibers::late_copies().copies.size());
}
template <int LATER>
void wait_copies() {
  fibers::LateCopies& late = fibers::late_copies();
  if (late.groups.size() <= LATER) return;
  const size_t groups = late.groups.size() - LATER, count = late.groups[groups - 1];
  for (size_t i = 0; i < count; i++) copy_now(late.copies[i]);
  late.copies.erase(late.copies.begin(), late.copies.begin() + long(count));
  late.groups.erase(late.groups.begin(), late.groups.begin() + long(groups));
  for (size_t& end : late.groups) end -= count;
}

}  // namespace plait
