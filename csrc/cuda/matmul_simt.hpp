// The product of matrices of which one at least is float32.
#pragma once
#include "cuda/matmul_engine.hpp"

namespace plait {

// problem, but with these operands in place of its own.
void matmul_simt(const MatmulProblem& problem, const void* a, DType type_a, const void* b, DType type_b);

}  // namespace plait
