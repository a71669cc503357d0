// Ops that have no CUDA kernel yet: they say so.
#include "core/ops.hpp"

namespace plait {

void exact_sum(const ConstArray&, bool, const Array&) { fail("exact_sum", "has no CUDA kernel yet"); }
double exact_value(const ConstArray&) { fail("exact_value", "has no CUDA kernel yet"); }
uint64_t fingerprint(const ConstArray&, int64_t) { fail("fingerprint", "has no CUDA kernel yet"); }
uint64_t weighted_bits(const ConstArray&, const ConstArray&, const ConstArray&) { fail("weighted_bits", "has no CUDA kernel yet"); }
void random_normal(int64_t, int64_t, int64_t, double, double, const Array&) { fail("random_normal", "has no CUDA kernel yet"); }
void dropout(const ConstArray&, float, int64_t, int64_t, int64_t, int64_t, int64_t, const Array&) { fail("dropout", "has no CUDA kernel yet"); }
void layer_norm_forward(const ConstArray&, const ConstArray&, const ConstArray&, float, const Array&, const Array&, const Array&) { fail("layer_norm_forward", "has no CUDA kernel yet"); }
void layer_norm_backward(const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, const Array&) { fail("layer_norm_backward", "has no CUDA kernel yet"); }
void layer_norm_backward_weight(const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, bool, const Array&, const Array&) { fail("layer_norm_backward_weight", "has no CUDA kernel yet"); }
void rms_norm_forward(const ConstArray&, const ConstArray&, float, const Array&, const Array&) { fail("rms_norm_forward", "has no CUDA kernel yet"); }
void rms_norm_backward(const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, const Array&) { fail("rms_norm_backward", "has no CUDA kernel yet"); }
void rms_norm_backward_weight(const ConstArray&, const ConstArray&, const ConstArray&, bool, const Array&) { fail("rms_norm_backward_weight", "has no CUDA kernel yet"); }
void rope(const ConstArray&, float, int64_t, bool, const Array&) { fail("rope", "has no CUDA kernel yet"); }
void embedding_forward(const ConstArray&, const ConstArray&, int64_t, const Array&) { fail("embedding_forward", "has no CUDA kernel yet"); }
void embedding_backward(const ConstArray&, const ConstArray&, int64_t, const std::vector<int64_t>&, const std::vector<int>&, int64_t, bool, const std::optional<ConstArray>&, const Array&) { fail("embedding_backward", "has no CUDA kernel yet"); }
void cross_entropy_statistics(const ConstArray&, const ConstArray&, int64_t, int64_t, const Array&, const Array&, const Array&) { fail("cross_entropy_statistics", "has no CUDA kernel yet"); }
void cross_entropy_merge(const ConstArray&, const std::vector<int>&, const Array&) { fail("cross_entropy_merge", "has no CUDA kernel yet"); }
void cross_entropy_loss(const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, const Array&) { fail("cross_entropy_loss", "has no CUDA kernel yet"); }
void cross_entropy_backward(const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, int64_t, int64_t, float, const Array&) { fail("cross_entropy_backward", "has no CUDA kernel yet"); }
void batch_norm_forward(const ConstArray&, const ConstArray&, const ConstArray&, float, bool, const Array&, const Array&, const Array&) { fail("batch_norm_forward", "has no CUDA kernel yet"); }
void batch_norm_backward(const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, float, const Array&) { fail("batch_norm_backward", "has no CUDA kernel yet"); }
void batch_norm_backward_weight(const ConstArray&, const ConstArray&, const ConstArray&, const ConstArray&, float, bool, const Array&, const Array&) { fail("batch_norm_backward_weight", "has no CUDA kernel yet"); }
void max_pool_forward(const ConstArray&, int64_t, int64_t, int64_t, const Array&, const Array&) { fail("max_pool_forward", "has no CUDA kernel yet"); }
void max_pool_backward(const ConstArray&, const ConstArray&, int64_t, int64_t, int64_t, const Array&) { fail("max_pool_backward", "has no CUDA kernel yet"); }
void mean_pool_forward(const ConstArray&, const Array&) { fail("mean_pool_forward", "has no CUDA kernel yet"); }
void mean_pool_backward(const ConstArray&, const Array&) { fail("mean_pool_backward", "has no CUDA kernel yet"); }
void adamw(const ConstArray&, float, float, float, float, float, float, int64_t, const Array&, const Array&, const Array&, const Array&) { fail("adamw", "has no CUDA kernel yet"); }
void sgd(const ConstArray&, float, float, float, float, const Array&, const Array&, const Array&) { fail("sgd", "has no CUDA kernel yet"); }

}  // namespace plait
