#include "cuda/device.hpp"

#include <map>
#include <mutex>
#include <utility>

#include "core/error.hpp"
#include "cuda/check.hpp"

namespace plait {
namespace {

thread_local cudaStream_t current = nullptr;

struct Block {
  void* data = nullptr;
  int64_t bytes = 0;
};
std::mutex guard;
using Place = std::pair<int, cudaStream_t>;
std::map<Place, Block>& blocks() {
  static std::map<Place, Block> all;
  return all;
}
int64_t reserved = 0;

int device() {
  int number = 0;
  PLAIT_CUDA(cudaGetDevice(&number));
  return number;
}

}  // namespace

void cuda_failed(cudaError_t error, const char* call, const char* file, int line) {
  cudaGetLastError();  // a failed launch would be told again by the next call
  std::string text = std::string(call) + " at " + file + ":" + std::to_string(line) + ": " + cudaGetErrorString(error) +
                     " (" + cudaGetErrorName(error) + ")";
  if (error == cudaErrorIllegalAddress || error == cudaErrorLaunchFailure || error == cudaErrorMisalignedAddress)
    text += "; a kernel started earlier did it, which compute-sanitizer can name";
  throw DeviceError(text);
}

const DeviceProperties& device_properties() {
  static std::map<int, DeviceProperties> known;
  std::lock_guard<std::mutex> lock(guard);
  const int number = device();
  const auto found = known.find(number);
  if (found != known.end()) return found->second;
  DeviceProperties p = {};
  PLAIT_CUDA(cudaDeviceGetAttribute(&p.multiprocessors, cudaDevAttrMultiProcessorCount, number));
  PLAIT_CUDA(cudaDeviceGetAttribute(&p.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, number));
  PLAIT_CUDA(cudaDeviceGetAttribute(&p.major, cudaDevAttrComputeCapabilityMajor, number));
  PLAIT_CUDA(cudaDeviceGetAttribute(&p.minor, cudaDevAttrComputeCapabilityMinor, number));
  return known[number] = p;
}

int driver_version() {
  int version = 0;
  PLAIT_CUDA(cudaDriverGetVersion(&version));
  return version;
}
int runtime_version() {
  int version = 0;
  PLAIT_CUDA(cudaRuntimeGetVersion(&version));
  return version;
}

void set_stream(uintptr_t stream) { current = reinterpret_cast<cudaStream_t>(stream); }
cudaStream_t stream() { return current; }

void* scratch_bytes(int64_t bytes) {
  std::lock_guard<std::mutex> lock(guard);
  Block& block = blocks()[{device(), current}];
  if (bytes > block.bytes) {
    const int64_t grown = (bytes + (bytes / 4) + 0xffff) & ~int64_t(0xffff);
    void* data = nullptr;
    PLAIT_CUDA(cudaMalloc(&data, size_t(grown)));
    block = {data, grown};
    reserved += grown;
  }
  return block.data;
}
int64_t scratch_reserved() {
  std::lock_guard<std::mutex> lock(guard);
  return reserved;
}

uint32_t* fault_word() {
  static std::map<int, uint32_t*> words;
  std::lock_guard<std::mutex> lock(guard);
  uint32_t*& word = words[device()];
  if (!word) {
    void* data = nullptr;
    PLAIT_CUDA(cudaMalloc(&data, 256));
    PLAIT_CUDA(cudaMemsetAsync(data, 0, 256, current));
    PLAIT_CUDA(cudaStreamSynchronize(current));  // other streams know nothing of this one
    word = static_cast<uint32_t*>(data);
  }
  return word;
}

void check_faults() {
  uint32_t found = 0;
  uint32_t* const word = fault_word();
  PLAIT_CUDA(cudaMemcpyAsync(&found, word, sizeof found, cudaMemcpyDeviceToHost, current));
  PLAIT_CUDA(cudaStreamSynchronize(current));
  if (!found) return;
  PLAIT_CUDA(cudaMemsetAsync(word, 0, sizeof found, current));
  if (Fault(found) == Fault::target_outside)
    fail("cross_entropy_statistics", "a target is at or beyond the vocabulary");
  if (Fault(found) == Fault::rows_wrong)
    fail("embedding_backward", "rows must rise, lie in the table, and hold the row of every token");
  fail("check_faults", "unknown fault ", found);
}

}  // namespace plait
