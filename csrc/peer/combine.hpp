// The additions of a window: one run of elements of every node, wherever the nodes lie.
#pragma once
#include <optional>
#include <vector>

#include "core/array.hpp"
#include "peer/said.hpp"

namespace plait {

// y = parts[0][i] op parts[1][i] ... goes to every outs[j][i]. Floats are added in the tree that `merges` describes, in
// float32, plus bias[(column + i) % length], and rounded once; integers have no order. An out may be one of the parts.
void combine(const std::vector<const char*>& parts, const std::vector<int>& merges, DType in, Reduce op,
             const std::optional<ConstArray>& bias, int64_t column, DType out_type, const std::vector<char*>& outs,
             int64_t n);

// memcpy by all threads of the pool where that pays.
void copy_bytes(void* out, const void* x, int64_t n);

}  // namespace plait
