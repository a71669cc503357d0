// The kernels of a node's collectives. `only`: the one stage to do, or -1 for all of them.
#pragma once
#include "peer/device_task.hpp"

namespace plait {

using ReduceKernel = void (*)(Peers, ReduceTask, int only);
using MoveKernel = void (*)(Peers, MoveTask, int only);

ReduceKernel reduce_kernel_of(DType in, DType out);  // null if there is none
int64_t reduce_shared_bytes(DType in, int depth, int threads);
MoveKernel move_kernel();
int64_t move_shared_bytes();

}  // namespace plait
