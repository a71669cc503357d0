// Ops that have no CUDA kernel yet: they say so.
#include "core/ops.hpp"

namespace plait {

void matmul(const ConstArray&, const ConstArray&, bool, bool, const std::vector<int64_t>&, bool, int64_t, const std::optional<ConstArray>&, const Array&) { fail("matmul", "has no CUDA kernel yet"); }
void matmul_backward_weight(const ConstArray&, const ConstArray&, const std::vector<int64_t>&, const std::vector<int>&, int64_t, bool, int64_t, const Array&) { fail("matmul_backward_weight", "has no CUDA kernel yet"); }
void attention_forward(const ConstArray&, const ConstArray&, const ConstArray&, bool, float, const Array&, const Array&) { fail("attention_forward", "has no CUDA kernel yet"); }
void attention_backward(const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, bool, float, const Array&, const Array&, const Array&) { fail("attention_backward", "has no CUDA kernel yet"); }
void conv2d_forward(const ConstArray&, const ConstArray&, bool, int64_t, int64_t, const std::vector<int64_t>&, const Array&) { fail("conv2d_forward", "has no CUDA kernel yet"); }
void conv2d_backward(const ConstArray&, const ConstArray&, bool, int64_t, int64_t, const std::vector<int64_t>&, const Array&) { fail("conv2d_backward", "has no CUDA kernel yet"); }
void conv2d_backward_weight(const ConstArray&, const ConstArray&, bool, int64_t, int64_t, const std::vector<int64_t>&, const std::vector<int>&, int64_t, bool, const Array&) { fail("conv2d_backward_weight", "has no CUDA kernel yet"); }

}  // namespace plait
