// How the wgmma engine lays out a matmul over the device. None of it changes a bit of the result.
#pragma once
#include "cuda/matmul_engine.hpp"

namespace plait {

struct WgmmaPlan {
  int columns;  // of a block's tile: 64, 128, 192 or 256; its rows are 128
  int cluster;  // 1 or 2 blocks, one tile below the other, that load their columns of B together
  bool apart;   // leaves are items of work of their own, merged by a second kernel
};
WgmmaPlan wgmma_plan(const MatmulProblem& problem, int multiprocessors);
void matmul_wgmma(const MatmulProblem& problem, const WgmmaPlan& plan);

}  // namespace plait
