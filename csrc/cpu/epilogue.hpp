// A matmul's epilogue on the CPU: a pass over out. In the tile, or block by block, it is slower (docs/verification.md): GELU is
// bound by its arithmetic, and what a pass of short rows brings in pushes packed operands out of L2.
#pragma once
#include "core/epilogue.hpp"

namespace plait {

// out holds the rounded sums.
void finish(const Epilogue& epilogue, const Array& out);

}  // namespace plait
