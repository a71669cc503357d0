// Ops that have no CUDA kernel yet: they say so.
#include "core/ops.hpp"

namespace plait {

void batch_norm_forward(const ConstArray&, const ConstArray&, const ConstArray&, float, bool, const Array&, const Array&, const Array&) { fail("batch_norm_forward", "has no CUDA kernel yet"); }
void batch_norm_backward(const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, float, const Array&) { fail("batch_norm_backward", "has no CUDA kernel yet"); }
void batch_norm_backward_weight(const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, float, bool, const Array&, const Array&) { fail("batch_norm_backward_weight", "has no CUDA kernel yet"); }
void max_pool_forward(const ConstArray&, int64_t, int64_t, int64_t, const Array&, const Array&) { fail("max_pool_forward", "has no CUDA kernel yet"); }
void max_pool_backward(const ConstArray&, const ConstArray&, int64_t, int64_t, int64_t, const Array&) { fail("max_pool_backward", "has no CUDA kernel yet"); }
void mean_pool_forward(const ConstArray&, const Array&) { fail("mean_pool_forward", "has no CUDA kernel yet"); }
void mean_pool_backward(const ConstArray&, const Array&) { fail("mean_pool_backward", "has no CUDA kernel yet"); }

}  // namespace plait
