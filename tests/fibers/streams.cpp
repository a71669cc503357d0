#include "streams.hpp"

#include <map>
#include <mutex>
#include <stdexcept>

struct FiberEvent {
  cudaStream_t stream;  // on which it was recorded last
  bool captured;        // there it belongs to a graph, and no host and no other stream can wait for it
};

namespace fibers {
namespace {

std::mutex guard;
std::map<cudaStream_t, Graph> captured;
std::vector<std::pair<uintptr_t, uintptr_t>> waited;

bool capturing(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(guard);
  return captured.count(stream) != 0;
}

}  // namespace

void tell(cudaStream_t stream, std::function<void()> work) {
  {
    const std::lock_guard<std::mutex> lock(guard);
    const auto found = captured.find(stream);
    if (found != captured.end()) return found->second.works.push_back(std::move(work));
  }
  work();
}

void begin_capture(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(guard);
  if (!captured.emplace(stream, Graph()).second) throw std::logic_error("this stream is captured already");
}

Graph end_capture(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(guard);
  const auto found = captured.find(stream);
  if (found == captured.end()) throw std::logic_error("this stream is not captured");
  Graph graph = std::move(found->second);
  captured.erase(found);
  return graph;
}

std::vector<std::pair<uintptr_t, uintptr_t>> waits() {
  const std::lock_guard<std::mutex> lock(guard);
  return waited;
}

}  // namespace fibers

using namespace fibers;

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return *status = capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return capturing(stream) ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return tell(stream, [=] { std::memmove(to, from, bytes); }), cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) { return std::memset(to, value, bytes), cudaSuccess; }
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return tell(stream, [=] { std::memset(to, value, bytes); }), cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = new FiberEvent{nullptr, false}, cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return *event = {stream, capturing(stream)}, cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return event->captured ? cudaErrorCapturedEvent : cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaEventQuery(event); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->captured != capturing(stream)) return cudaErrorStreamCaptureIsolation;
  const std::lock_guard<std::mutex> lock(guard);
  waited.emplace_back(reinterpret_cast<uintptr_t>(stream), reinterpret_cast<uintptr_t>(event->stream));
  return cudaSuccess;
}
