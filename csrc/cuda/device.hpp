// The device and stream that kernels run on, and working memory of theirs.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "core/error.hpp"

namespace plait {

// What kernels ask of a device to choose their grid; read once.
struct DeviceProperties {
  int multiprocessors, shared_bytes, major, minor;  // shared_bytes: the most that one block can ask for
};
const DeviceProperties& device_properties();

// Of CUDA, such as 13000; that of the driver is the newest it knows, 0 without one.
int driver_version();
int runtime_version();

// Kernels of this thread go to this stream; the default stream until set.
void set_stream(uintptr_t stream);
cudaStream_t stream();

// `bytes` of device memory for a kernel about to start on stream(), aligned to 256. One block per stream: the next call
// on it gives the same memory. It only grows, and a block that was outgrown stays, since a captured graph may know it.
void* scratch_bytes(int64_t bytes);
template <class T>
T* scratch(int64_t count) {
  return static_cast<T*>(scratch_bytes(count * int64_t(sizeof(T))));
}
int64_t scratch_reserved();  // bytes, over all streams

// Kernels that find something wrong in their data say so here; the first of them is thrown by check_faults(), which waits
// for stream().
enum class Fault : uint32_t { none, target_outside, rows_wrong };
uint32_t* fault_word();
void check_faults();

}  // namespace plait
