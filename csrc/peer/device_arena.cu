#include "peer/device_arena.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "cuda/check.hpp"
#include "cuda/device.hpp"

namespace plait {
namespace {

constexpr int64_t ALIGN = 256;
constexpr int64_t PAGE = int64_t(2) << 20;  // of device memory: a smaller allocation shares one, and a handle would give all of it away

int current_device() {
  int device = 0;
  PLAIT_CUDA(cudaGetDevice(&device));
  return device;
}

}  // namespace

DeviceIdentity device_identity() {
  const int device = current_device();
  cudaDeviceProp properties;
  PLAIT_CUDA(cudaGetDeviceProperties(&properties, device));
  char bus[32], digits[3];
  PLAIT_CUDA(cudaDeviceGetPCIBusId(bus, sizeof bus, device));
  DeviceIdentity found{"", bus, properties.name};
  for (char byte : properties.uuid.bytes) {
    std::snprintf(digits, sizeof digits, "%02x", unsigned(byte) & 0xffu);
    found.uuid += digits;
  }
  return found;
}

int reaches_device(const std::string& bus) {
  int other = 0, reaches = 0;
  if (cudaDeviceGetByPCIBusId(&other, bus.c_str()) != cudaSuccess) {
    cudaGetLastError();
    return -1;
  }
  PLAIT_CUDA(cudaDeviceCanAccessPeer(&reaches, current_device(), other));
  return reaches;
}

DeviceArena::DeviceArena(int64_t bytes) : bytes_((bytes + PAGE - 1) / PAGE * PAGE), list_(ALIGN) {
  PLAIT_CHECK(bytes > 0, "arena", "of ", bytes, " bytes");
  void* data = nullptr;
  PLAIT_CUDA(cudaMalloc(&data, size_t(bytes_)));
  base_ = static_cast<char*>(data);
  list_.extend(bytes_);
}

DeviceArena::~DeviceArena() { cudaFree(base_); }  // at the end of the process there may be no CUDA left to do it

int64_t DeviceArena::used() const {
  std::lock_guard<std::mutex> lock(mutex_);
  int64_t left = 0;
  for (const auto& [offset, bytes] : list_.free()) left += bytes;
  return bytes_ - left;
}

std::string DeviceArena::handle() const {
  cudaIpcMemHandle_t handle;
  PLAIT_CUDA(cudaIpcGetMemHandle(&handle, base_));
  return std::string(handle.reserved, sizeof handle.reserved);
}

int64_t DeviceArena::allocate(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  PLAIT_CHECK(bytes >= 0, "arena", "cannot hold ", bytes, " bytes");
  if (bytes > bytes_) return -1;
  const int64_t need = list_.taken_by(bytes);
  if (keeping_) {
    const auto found = kept_free_.find(need);
    if (found != kept_free_.end()) {
      const int64_t offset = found->second;
      kept_free_.erase(found);
      return offset;
    }
  }
  const int64_t offset = list_.allocate(bytes);
  if (keeping_ && offset >= 0) {
    kept_[offset] = need;
    recorded_.push_back(offset);
  }
  return offset;
}

void DeviceArena::release(int64_t offset) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = kept_.find(offset);
  if (found == kept_.end())
    list_.release(offset);
  else
    kept_free_.emplace(found->second, offset);
}

void DeviceArena::keep(bool on) {
  std::lock_guard<std::mutex> lock(mutex_);
  keeping_ = on;
  if (on) recorded_.clear();
}

void DeviceArena::forget() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const int64_t offset : recorded_) {
    const auto [first, last] = kept_free_.equal_range(kept_.at(offset));
    const auto found = std::find_if(first, last, [=](const auto& each) { return each.second == offset; });
    if (found != last) {  // else somebody still has it, and gives it back to the list
      kept_free_.erase(found);
      list_.release(offset);
    }
    kept_.erase(offset);
  }
  recorded_.clear();
}

int64_t DeviceArena::find(const void* p, int64_t bytes) const {
  const int64_t offset = int64_t(reinterpret_cast<uintptr_t>(p)) - int64_t(reinterpret_cast<uintptr_t>(base_));
  return offset >= 0 && bytes >= 0 && offset <= bytes_ - bytes ? offset : -1;
}

void DeviceArena::clear(int64_t offset, int64_t bytes) {
  PLAIT_CHECK(offset >= 0 && bytes >= 0 && offset <= bytes_ - bytes, "arena", "no ", bytes, " bytes at ", offset);
  PLAIT_CUDA(cudaMemsetAsync(base_ + offset, 0, size_t(bytes), stream()));
  PLAIT_CUDA(cudaStreamSynchronize(stream()));
}

DeviceMapping::DeviceMapping(const std::string& handle) {
  cudaIpcMemHandle_t raw;
  PLAIT_CHECK(handle.size() == sizeof raw.reserved, "arena", "a handle has ", sizeof raw.reserved, " bytes, not ", handle.size());
  std::memcpy(raw.reserved, handle.data(), sizeof raw.reserved);
  void* data = nullptr;
  PLAIT_CUDA(cudaIpcOpenMemHandle(&data, raw, cudaIpcMemLazyEnablePeerAccess));
  base_ = static_cast<char*>(data);
}

void DeviceMapping::close() {
  if (base_) cudaIpcCloseMemHandle(base_);
  base_ = nullptr;
}

}  // namespace plait
