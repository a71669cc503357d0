// cuda/shared.cuh on fibers: every block of a cluster has its own.
#pragma once
#include "fibers.hpp"

namespace plait {

template <class T>
T* dynamic_shared() {
  const auto address = (reinterpret_cast<uintptr_t>(fibers::shared_memory()) + 1023) & ~uintptr_t(1023);
  return reinterpret_cast<T*>(address);
}

}  // namespace plait
