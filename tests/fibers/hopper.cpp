#pragma GCC optimize("O3")  // most of the tests' time goes here
#include "hopper.hpp"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_runtime.h"

namespace hopper {
namespace {

constexpr uint32_t RANK_SHIFT = 24, OFFSET = (1u << RANK_SHIFT) - 1;

[[noreturn]] void wrong(const std::string& what) { throw std::logic_error(what); }

unsigned char* aligned(unsigned char* p) {
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(p) + 1023) & ~uintptr_t(1023));
}

uint32_t swizzled(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

struct Barrier {  // the 64 bits that it has in shared memory
  int32_t bytes;  // still to come in this phase; copies may be done before it is known of them
  int16_t left;   // arrivals
  uint16_t arrivals : 15, phase : 1;
};
static_assert(sizeof(Barrier) == 8, "");

Barrier* barrier_at(unsigned char* p) {
  if (reinterpret_cast<uintptr_t>(p) % 8) wrong("a barrier at an address that is no multiple of 8");
  return reinterpret_cast<Barrier*>(p);
}
void end_phase(Barrier& b) {
  if (b.left < 0) wrong("more arrivals at a barrier than it waits for");
  if (b.left || b.bytes) return;
  b.left = int16_t(b.arrivals);
  b.phase ^= 1;
}

struct Tensor {
  unsigned char* data;
  int64_t sizes[3], strides[2];  // strides in bytes
  int32_t box[3];
};
static_assert(sizeof(Tensor) <= sizeof(CUtensorMap), "");

Tensor tensor_of(const CUtensorMap& map) {
  Tensor t;
  std::memcpy(&t, &map, sizeof t);
  return t;
}

// f(place of 16 bytes of the box in shared memory, where they lie in memory or null, how many of their elements are inside)
template <class F>
void each_piece(const Tensor& t, const int (&from)[3], uint32_t address, F f) {
  uint32_t offset = address;
  for (int z = from[2]; z < from[2] + t.box[2]; z++)
    for (int y = from[1]; y < from[1] + t.box[1]; y++) {
      const bool inside = y >= 0 && y < t.sizes[1] && z >= 0 && z < t.sizes[2];
      unsigned char* const line = inside ? t.data + y * t.strides[0] + z * t.strides[1] : nullptr;
      for (int64_t x = from[0]; x < from[0] + t.box[0]; x += 8, offset += 16) {
        const int64_t count = std::max<int64_t>(0, std::min<int64_t>(8, t.sizes[0] - x));
        f(swizzled(offset), line && count ? line + x * 2 : nullptr, size_t(count));
      }
    }
}

struct Product {
  float* sum;
  int n;
  uint64_t a, b;
  bool add, k_major_a, k_major_b;
};
struct Store {
  Tensor tensor;
  int at[3];
  uint32_t from;
  unsigned char* base;
};
struct Thread {  // what it has started
  bool fenced = false;
  std::vector<Product> products;
  std::deque<std::vector<Product>> product_groups;
  std::vector<Store> stores;
  std::deque<std::vector<Store>> store_groups;
};
thread_local std::map<std::pair<size_t, int>, Thread> threads;  // of the blocks that run
thread_local uint64_t cluster = 0;

Thread& thread() {
  if (cluster != fibers::cluster_number()) {
    cluster = fibers::cluster_number();
    threads.clear();
    fibers::at_end([] {
      for (const auto& [place, t] : threads)
        if (!t.products.empty() || !t.product_groups.empty() || !t.stores.empty() || !t.store_groups.empty())
          wrong("a thread ended without waiting for its wgmma or its stores");
    });
  }
  return threads[{fibers::block_number(), fibers::thread_index()}];
}

void store(const Store& s) {
  each_piece(s.tensor, s.at, s.from, [&](uint32_t offset, unsigned char* to, size_t count) {
    if (to) std::memcpy(to, s.base + offset, count * 2);
  });
}

// Row `row` of an operand of 16 k; for B a row is a column of the product.
void read_row(const unsigned char* base, uint64_t operand, bool k_major, int row, float (&x)[16]) {
  const uint32_t start = uint32_t(operand & 0x3fff) << 4, leading = uint32_t(operand >> 16 & 0x3fff) << 4,
                 stride = uint32_t(operand >> 32 & 0x3fff) << 4;
  if (operand >> 62 != 1 || (operand >> 49 & 7)) wrong("wgmma: only 128-byte swizzle without a base offset is here");
  const uint32_t first = start + (k_major ? uint32_t(row / 8) * stride + uint32_t(row % 8 * 128)
                                          : uint32_t(row / 64) * leading + uint32_t(row % 64 * 2));
  for (int k = 0; k < 16; k++) {
    const uint32_t offset = k_major ? uint32_t(k * 2) : uint32_t(k / 8) * stride + uint32_t(k % 8 * 128);
    uint16_t bits;
    std::memcpy(&bits, base + swizzled(first + offset), 2);
    x[k] = __uint_as_float(uint32_t(bits) << 16);
  }
}

void multiply(const Product& p) {
  const unsigned char* const base = at(0);
  const int t = fibers::thread_index() % 128;
  float a[2][16], b[16];
  for (int h = 0; h < 2; h++) read_row(base, p.a, p.k_major_a, t / 32 * 16 + t % 32 / 4 + 8 * h, a[h]);
  for (int j = 0; j < p.n / 8; j++)
    for (int i = 0; i < 2; i++) {
      read_row(base, p.b, p.k_major_b, 8 * j + t % 4 * 2 + i, b);
      for (int h = 0; h < 2; h++) {
        float& sum = p.sum[4 * j + 2 * h + i];
        double step = 0;  // rounded once, so that where a step begins shows in the bits
        for (int k = 0; k < 16; k++) step += double(a[h][k]) * b[k];
        sum = float((p.add ? double(sum) : 0.0) + step);
      }
    }
}

}  // namespace

uint32_t address_of(const void* p) {
  return uint32_t(static_cast<const unsigned char*>(p) - aligned(fibers::shared_memory()));
}
unsigned char* at(uint32_t address) {
  const uint32_t rank = address >> RANK_SHIFT;
  return aligned(rank ? fibers::shared_memory(rank - 1) : fibers::shared_memory()) + (address & OFFSET);
}

void barrier_init(uint32_t barrier, unsigned arrivals) {
  Barrier b = {};
  b.left = int16_t(arrivals), b.arrivals = uint16_t(arrivals);
  *barrier_at(at(barrier)) = b;
}
void barrier_arrive(uint32_t barrier, int rank, unsigned bytes) {
  Barrier& b = *barrier_at(at(rank < 0 ? barrier : barrier | uint32_t(rank + 1) << RANK_SHIFT));
  b.bytes += int32_t(bytes);
  b.left--;
  end_phase(b);
}
void barrier_wait(uint32_t barrier, unsigned parity) {
  const Barrier* const b = barrier_at(at(barrier));
  fibers::wait_until("a barrier in shared memory", [=] { return b->phase != parity; });
}

void tma_load(unsigned ranks, uint32_t to, const CUtensorMap& map, int x, int y, int z, uint32_t barrier) {
  const Tensor t = tensor_of(map);
  if (to % 128) wrong("TMA: a box in shared memory at an address that is no multiple of 128");
  for (int rank = 0; ranks >> rank; rank++) {
    if (!(ranks >> rank & 1)) continue;
    unsigned char* const base = at(uint32_t(rank + 1) << RANK_SHIFT);
    Barrier* const b = barrier_at(base + barrier);
    fibers::later([=] {
      int copied = 0;
      each_piece(t, {x, y, z}, to, [&](uint32_t offset, const unsigned char* from, size_t count) {
        std::memset(base + offset, 0, 16);
        if (from) std::memcpy(base + offset, from, count * 2);
        copied += 16;
      });
      b->bytes -= copied;
      end_phase(*b);
    });
  }
}

void tma_store(const CUtensorMap& map, int x, int y, int z, uint32_t from) {
  if (from % 128) wrong("TMA: a box in shared memory at an address that is no multiple of 128");
  thread().stores.push_back({tensor_of(map), {x, y, z}, from, at(0)});
}
void tma_store_commit() {
  Thread& t = thread();
  t.store_groups.push_back(std::move(t.stores));
  t.stores.clear();
}
void tma_store_wait(int left) {
  auto& groups = thread().store_groups;
  for (; int(groups.size()) > left; groups.pop_front())
    for (const Store& s : groups.front()) store(s);
}

void wgmma_fence() { thread().fenced = true; }
void wgmma(float* sum, int n, uint64_t a, uint64_t b, bool add, bool k_major_a, bool k_major_b) {
  Thread& t = thread();
  if (!t.fenced) wrong("wgmma without a wgmma.fence since registers were last its own");
  t.products.push_back({sum, n, a, b, add, k_major_a, k_major_b});
}
void wgmma_commit() {
  Thread& t = thread();
  t.product_groups.push_back(std::move(t.products));
  t.products.clear();
  fibers::exchange(0xffffffffu, "wgmma.commit_group", "", 1);
}
void wgmma_wait(int left) {
  auto& groups = thread().product_groups;
  for (; int(groups.size()) > left; groups.pop_front())
    for (const Product& p : groups.front()) multiply(p);
  thread().fenced = false;
  fibers::exchange(0xffffffffu, "wgmma.wait_group", "", 1);  // a warp goes on when all of it is done
}

}  // namespace hopper

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data, const cuuint64_t* sizes,
                                const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  hopper::Tensor t = {};
  t.data = static_cast<unsigned char*>(data);
  bool right = rank == 3 && swizzle == CU_TENSOR_MAP_SWIZZLE_128B && data && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
               box[0] <= 64 && box[0] % 8 == 0;
  for (int i = 0; i < 3; i++) {
    t.sizes[i] = int64_t(sizes[i]), t.box[i] = int32_t(box[i]);
    right = right && sizes[i] >= 1 && sizes[i] <= uint64_t(1) << 32 && box[i] >= 1 && box[i] <= 256 && steps[i] == 1;
  }
  for (int i = 0; i < 2; i++) {
    t.strides[i] = int64_t(strides[i]);
    right = right && strides[i] % 16 == 0 && strides[i] > 0 && strides[i] < uint64_t(1) << 40;
  }
  if (!right) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(map, &t, sizeof t);
  return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  const bool known = !std::strcmp(symbol, "cuTensorMapEncodeTiled");
  *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
