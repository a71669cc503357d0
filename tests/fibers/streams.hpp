// What streams are told: done at once, or kept for the graph that a captured stream becomes. And which stream waited for which.
#pragma once
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

namespace fibers {

// What a stream was told while it was captured, with the arguments as they were then.
struct Graph {
  std::vector<std::function<void()>> works;
  void launch() const {
    for (const auto& work : works) work();
  }
};

void begin_capture(cudaStream_t stream);
Graph end_capture(cudaStream_t stream);

// (the stream that was to wait, the one on which the event was recorded last), of all calls of cudaStreamWaitEvent so far.
std::vector<std::pair<uintptr_t, uintptr_t>> waits();

}  // namespace fibers
