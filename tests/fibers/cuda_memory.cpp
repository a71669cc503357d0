// Device memory as memory of the process, in files without names (memfd), so that other processes can map it: a handle
// says which process has which file open. Errors as CUDA's.
#include "cuda_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "cuda_runtime.h"

namespace fibers {
namespace {

struct Allocation {
  size_t bytes;
  int fd;
};
std::mutex guard;
std::map<void*, Allocation> allocated;
std::map<void*, size_t> mapped;

struct Handle {
  char mark[8];
  pid_t pid;
  int fd;
  ino_t file;
  size_t bytes;
};
static_assert(sizeof(Handle) <= sizeof(cudaIpcMemHandle_t));
constexpr char MARK[8] = "fibers";

void* map(int fd, size_t bytes) {
  void* const found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return found == MAP_FAILED ? nullptr : found;
}

}  // namespace

Pretended& pretended() {
  static Pretended all;
  return all;
}

int allocations() {
  std::lock_guard<std::mutex> lock(guard);
  return int(allocated.size() + mapped.size());
}

}  // namespace fibers

using namespace fibers;

cudaError_t cudaMalloc(void** data, size_t bytes) {
  bytes = (bytes + (bytes == 0) + 4095) / 4096 * 4096;
  const int fd = memfd_create("fibers-device", MFD_CLOEXEC);
  void* const found = fd >= 0 && ftruncate(fd, off_t(bytes)) == 0 ? map(fd, bytes) : nullptr;
  if (!found) {
    if (fd >= 0) close(fd);
    return cudaErrorMemoryAllocation;
  }
  std::memset(found, 0xff, bytes);  // nothing may count on zeros
  std::lock_guard<std::mutex> lock(guard);
  allocated[*data = found] = {bytes, fd};
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  std::lock_guard<std::mutex> lock(guard);
  const auto found = allocated.find(data);
  if (found == allocated.end()) return data ? cudaErrorInvalidValue : cudaSuccess;
  munmap(data, found->second.bytes);
  close(found->second.fd);
  allocated.erase(found);
  return cudaSuccess;
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* data) {
  std::lock_guard<std::mutex> lock(guard);
  auto found = allocated.upper_bound(data);
  if (found == allocated.begin()) return cudaErrorInvalidValue;
  --found;
  if (static_cast<char*>(data) >= static_cast<char*>(found->first) + found->second.bytes) return cudaErrorInvalidValue;
  struct stat about;
  if (fstat(found->second.fd, &about)) return cudaErrorInvalidValue;
  Handle raw = {};
  std::memcpy(raw.mark, MARK, sizeof MARK);
  raw.pid = getpid(), raw.fd = found->second.fd, raw.file = about.st_ino, raw.bytes = found->second.bytes;
  std::memset(handle, 0, sizeof *handle);
  std::memcpy(handle, &raw, sizeof raw);
  return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void** data, cudaIpcMemHandle_t handle, unsigned flags) {
  Handle raw;
  std::memcpy(&raw, &handle, sizeof raw);
  if (std::memcmp(raw.mark, MARK, sizeof MARK) || flags != cudaIpcMemLazyEnablePeerAccess) return cudaErrorInvalidValue;
  if (raw.pid == getpid()) return cudaErrorDeviceUninitialized;
  if (!pretended().opens) return cudaErrorMapBufferObjectFailed;
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/fd/%d", int(raw.pid), raw.fd);
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  struct stat about;
  const bool there = fd >= 0 && fstat(fd, &about) == 0 && about.st_ino == raw.file;
  void* const found = there ? map(fd, raw.bytes) : nullptr;
  if (fd >= 0) close(fd);
  if (!found) return cudaErrorInvalidResourceHandle;
  std::lock_guard<std::mutex> lock(guard);
  mapped[*data = found] = raw.bytes;
  return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void* data) {
  std::lock_guard<std::mutex> lock(guard);
  const auto found = mapped.find(data);
  if (found == mapped.end()) return cudaErrorInvalidValue;
  munmap(data, found->second);
  mapped.erase(found);
  return cudaSuccess;
}

// --- devices ---------------------------------------------------------------------------------------------

static void bus_of(int number, char* bus, int length) { std::snprintf(bus, size_t(length), "0000:%02x:00.0", number); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  std::snprintf(properties->name, sizeof properties->name, "%s", pretended().name.c_str());
  std::memset(properties->uuid.bytes, pretended().number, sizeof properties->uuid.bytes);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* bus, int length, int) { return bus_of(pretended().number, bus, length), cudaSuccess; }

// Other processes' GPUs have numbers behind those of this process.
cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* bus) {
  unsigned number = 0;
  if (std::sscanf(bus, "0000:%x:00.0", &number) != 1) return cudaErrorInvalidValue;
  if (int(number) == pretended().number) return cudaGetDevice(device);
  return pretended().sees ? (*device = 2 + int(number), cudaSuccess) : cudaErrorInvalidDevice;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return *can = device != peer && pretended().reaches, cudaSuccess;
}
