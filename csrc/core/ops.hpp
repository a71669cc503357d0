// The contract: every op, once. Both backends implement exactly this; outputs come last and are preallocated.
//
// Shapes are in comments. x, grad, out are float32 or bfloat16 storage (all the same within a call unless said);
// sums run in float32. Parameter gradients, statistics and optimizer state are float32. "accumulate" continues
// the chain of additions that `out` holds (beta = 1): the stored float32 is loaded first, then terms are added one
// by one; false starts at zero. Arrays are contiguous unless a comment says strided (then the last axis has
// stride 1). An output element's order of additions depends on no other size, tile or thread (docs/numerics.md).
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "core/array.hpp"

namespace plait {

// --- matmul -------------------------------------------------------------------------------------
// out(M, N) [+]= op(a) op(b) [+ bias(N)]; op(a) (M, K), op(b) (K, N). a, b float32 or bfloat16, out float32
// or the type of a. Rows strided. K is cut at `leaves` = {0, ..., K}: each leaf is one fused-multiply-add chain
// in ascending k from zero (the first from `out` if accumulate), leaves are merged by the tree (splits at the
// largest power of two below n), then bias is added in float32, then one rounding to out's type. accumulate
// needs a float32 out and a single leaf. K = 0 gives zeros (or bias).
// Where both a and b are bfloat16 a leaf's k are taken in pairs (0, 1), (2, 3) ..., the second of a pair first; one
// without a second has +0 * +0 for it. Denormal elements and sums of the chain count as zeros of their sign (a sum
// if it is below 2^-126 also when rounded to 24 bits). Pairs start afresh at multiples of period, where 0 is none: that of
// a sum over samples is a sample's length, so that pairs do not depend on how many samples there are. An odd period below
// 8 has no pairs: its chain is that of float32. On a GPU tensor cores take steps of 16 k in place of pairs, which start afresh at
// every leaf and, unless 16 divides it, at multiples of period, filled up with +0 * +0; denormals count.
//
// Epilogue: what becomes of the rounded sum, one of these at most, with the bits of that op after the matmul. The arrays have
// out's shape and type and none of its memory; rows strided. Not with accumulate.
struct Epilogue {
  std::optional<Array> gelu;                // gelu = gelu_forward(out), beside out
  std::optional<ConstArray> gelu_backward;  // out = gelu_backward(sum, gelu_backward)
  std::optional<ConstArray> residual;       // out = residual + sum
};
void matmul(const ConstArray& a, const ConstArray& b, bool transpose_a, bool transpose_b,
            const std::vector<int64_t>& leaves, bool accumulate, int64_t period,
            const std::optional<ConstArray>& bias, const Array& out, const Epilogue& epilogue = {});
// rows (K, M)^T columns (K, N), as matmul, into a stack out (slots, M, N) float32: leaf 0 goes to `slot`, where accumulate
// continues the chain that is there; after leaf i the top two merge merges[i] times, lower + upper, and the next leaf goes
// to the next slot. Slots that merge within the call are not written.
void matmul_backward_weight(const ConstArray& rows, const ConstArray& columns, const std::vector<int64_t>& leaves,
                            const std::vector<int>& merges, int64_t slot, bool accumulate, int64_t period,
                            const Array& out);

// --- sums and copies --------------------------------------------------------------------------
// out = x0 + x1 + ... in float32, one chain in the given order, rounded once. Any equal shapes, contiguous.
void add(const std::vector<ConstArray>& inputs, const Array& out);
// out = tree sum of float32 parts [+ bias over the last axis] rounded to out's type. After pushing part i on a
// stack the top two are merged merges[i] times (lower + upper); one part must remain at the end.
void tree_sum(const std::vector<ConstArray>& parts, const std::vector<int>& merges,
              const std::optional<ConstArray>& bias, const Array& out);
// x(B, S, C) strided, out(C) float32: one chain over samples, then positions.
void sum_rows(const ConstArray& x, bool accumulate, const Array& out);
// Converts element types (float32 <-> bfloat16, round to nearest even); equal shapes; both strided.
void convert(const ConstArray& x, const Array& out);
// Exact, order-free sums: every chunk of 1024 elements of the flat float32 x is summed in float32 (x, or x*x rounded):
// lane l of 16 adds elements l, l + 16, ...; then lanes fold in halves, l + (l + 8), l + (l + 4), l + (l + 2), l + (l + 1).
// That float is added to `limbs` (int64, LIMBS long) as an integer: limb i counts multiples of 2^(32 i - 149), so
// 2^31 chunks fit. Limbs of ranks add by integer sum. NaN and infinity set the last limb (and any overflow of a chunk);
// exact_value turns limbs into the nearest double, NaN if the last limb is set.
constexpr int LIMBS = 20;
void exact_sum(const ConstArray& x, bool squares, const Array& limbs);
double exact_value(const ConstArray& limbs);
// The sum modulo 2^64, over the elements of the flat x, of a mix of (first_index + i, bits of x(i)): the pieces of an
// array, however it is cut, add up to that of the whole. float32 or bfloat16.
uint64_t fingerprint(const ConstArray& x, int64_t first_index);
// The sum modulo 2^64, over the elements of x(R, C), of rows(r) * columns(c) * a mix of the bits of x(r, c). Any type of
// 2 or 4 bytes; rows and columns uint64.
uint64_t weighted_bits(const ConstArray& x, const ConstArray& rows, const ConstArray& columns);

// --- randomness: Philox 4x32-10 ----------------------------------------------------------------
// How keys and counters are made: core/philox.hpp. Any element can be computed alone.
// out(n) float32 = mean + std * normal(seed, stream, first_index + i)  (Box-Muller in double on own log, sine and cosine);
// mean and std are rounded to float32 first.
void random_normal(int64_t seed, int64_t stream, int64_t first_index, double mean, double std, const Array& out);
// x(B, S, C) strided, out contiguous: kept elements times 1/(1-p), others +0. The key is (seed, step, layer), the number of an
// element (first_sample + b, (first_position + s) * C + c). The same call on the gradient is its backward.
void dropout(const ConstArray& x, float probability, int64_t seed, int64_t step, int64_t layer,
             int64_t first_sample, int64_t first_position, const Array& out);

// --- norms --------------------------------------------------------------------------------------
// x, out (R, C); weight, bias (C); mean, rstd (R) float32. Weight and bias have x's type or float32.
// With residual (R, C), x's type, what is normed is stream (R, C) = x + residual, rounded as add does; both or neither.
// Backward takes that stream for x. With grad_stream (R, C), its gradient by its other use, grad_x = grad_stream + the norm's
// own gradient, which is rounded to storage first: the bits of the norm's backward, then add. grad_x may be grad_stream itself.
void layer_norm_forward(const ConstArray& x, const std::optional<ConstArray>& residual, const ConstArray& weight,
                        const ConstArray& bias, float epsilon, const std::optional<Array>& stream, const Array& out,
                        const Array& mean, const Array& rstd);
void layer_norm_backward(const ConstArray& grad, const std::optional<ConstArray>& grad_stream, const ConstArray& x,
                         const ConstArray& weight, const ConstArray& mean, const ConstArray& rstd,
                         const Array& grad_x);
// grad, x (B, S, C) strided; mean, rstd (B, S) strided; grad_weight, grad_bias (C): chains over samples, positions.
void layer_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& mean,
                                const ConstArray& rstd, bool accumulate, const Array& grad_weight,
                                const Array& grad_bias);
void rms_norm_forward(const ConstArray& x, const std::optional<ConstArray>& residual, const ConstArray& weight,
                      float epsilon, const std::optional<Array>& stream, const Array& out, const Array& rstd);
void rms_norm_backward(const ConstArray& grad, const std::optional<ConstArray>& grad_stream, const ConstArray& x,
                       const ConstArray& weight, const ConstArray& rstd, const Array& grad_x);
void rms_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& rstd,
                              bool accumulate, const Array& grad_weight);

// --- activations --------------------------------------------------------------------------------
// Any equal shapes, strided. GELU is the tanh form of Hendrycks and Gimpel (2016), GPT-2's.
void gelu_forward(const ConstArray& x, const Array& out);
void gelu_backward(const ConstArray& grad, const ConstArray& x, const Array& grad_x);
void relu_forward(const ConstArray& x, const Array& out);
void relu_backward(const ConstArray& grad, const ConstArray& out, const Array& grad_x);
// out = silu(gate) * up (Shazeer 2020).
void swiglu_forward(const ConstArray& gate, const ConstArray& up, const Array& out);
void swiglu_backward(const ConstArray& grad, const ConstArray& gate, const ConstArray& up,
                     const Array& grad_gate, const Array& grad_up);
// x, out (B, S, H, D) strided: rotates pairs (i, i + D/2) by (first_position + s) * base^(-2i/D); inverse for backward.
void rope(const ConstArray& x, float base, int64_t first_position, bool inverse, const Array& out);

// --- attention ----------------------------------------------------------------------------------
// q, out (B, Sq, H, D), k, v (B, Sk, G, D), all strided; H a multiple of G; log_sum (B, H, Sq) float32. Softmax over keys of
// scale * q.k, causal lets query i see keys up to i + Sk - Sq. No Sq x Sk matrix is stored. In bfloat16 all products are
// matmul's of two bfloat16 matrices, in pairs or with AMX in blocks: for them, and only there, exp(score - peak) in forward,
// and in backward the probabilities and the gradients of scores (times scale) are rounded to bfloat16. On a GPU blocks are of 64
// queries and 64 keys (32 where a backward head is larger than 64), and only what is not finite reaches masked queries of a block.
void attention_forward(const ConstArray& q, const ConstArray& k, const ConstArray& v, bool causal, float scale,
                       const Array& out, const Array& log_sum);
void attention_backward(const ConstArray& grad, const ConstArray& q, const ConstArray& k, const ConstArray& v,
                        const ConstArray& out, const ConstArray& log_sum, bool causal, float scale,
                        const Array& grad_q, const Array& grad_k, const Array& grad_v);

// --- embedding ----------------------------------------------------------------------------------
// tokens (R) int32; weight (V, C) holds rows first_row .. first_row + V; tokens outside give +0 rows. out (R, C).
void embedding_forward(const ConstArray& tokens, const ConstArray& weight, int64_t first_row, const Array& out);
// A stack (slots, V, C) float32, with leaves of tokens as in matmul_backward_weight: per row and leaf one chain in token
// order. A row adds nothing to a merge with a leaf that has none of its tokens. rows int64, sorted: all that have tokens here
// or anything in the stack so far; the others are zero, and need not be looked at. Without it any may have.
void embedding_backward(const ConstArray& tokens, const ConstArray& grad, int64_t first_row,
                        const std::vector<int64_t>& leaves, const std::vector<int>& merges, int64_t slot,
                        bool accumulate, const std::optional<ConstArray>& rows, const Array& grad_weight);

// --- cross-entropy over a sharded vocabulary -----------------------------------------------------
// logits (R, V) of columns first_column ..., columns at or beyond `vocabulary` are padding and never win.
// peak, sum (R) float32: max and sum of exp(logit - max) over this shard, in one fixed order; rows of logits strided. target_logit (R) float32 is written
// only where this shard holds the target (targets (R) int32; negative: ignored; at or beyond `vocabulary`: ValueError).
void cross_entropy_statistics(const ConstArray& logits, const ConstArray& targets, int64_t first_column,
                              int64_t vocabulary, const Array& peak, const Array& sum,
                              const Array& target_logit);
// Tree merge of n (peak, sum) pairs, parts (n, 2, R), merges as in tree_sum: out (2, R).
void cross_entropy_merge(const ConstArray& parts, const std::vector<int>& merges, const Array& out);
// losses (R) = log(sum) + peak - target_logit, 0 where the target is negative.
void cross_entropy_loss(const ConstArray& peak, const ConstArray& sum, const ConstArray& target_logit,
                        const ConstArray& targets, const Array& losses);
// grad_logits (R, V) = scale * (softmax - onehot), 0 for ignored rows and padding; may alias logits.
void cross_entropy_backward(const ConstArray& logits, const ConstArray& targets, const ConstArray& peak,
                            const ConstArray& sum, int64_t first_column, int64_t vocabulary, float scale,
                            const Array& grad_logits);

// Of each row of x (R, C), rows strided: the first of the largest of its first `columns` elements, or the first NaN if there is
// one. value (R) float32, index (R) int32; -infinity and 0 where columns is 0.
void argmax(const ConstArray& x, int64_t columns, const Array& value, const Array& index);

// --- convolution, NHWC ----------------------------------------------------------------------------
// x (B, H, W, I), out (B, OH, OW, O); OH = (H + 2 padding - KH) / stride + 1. weight (O, KH, KW, I), or (I, KH, KW, O) if
// input_first. Channels of x (input_first) are cut at `leaves`, merged by the tree, as in matmul; a leaf is one chain over
// (kernel row, kernel column, channel) of the places inside the image: padding adds no terms, so 0 * infinity never comes of it.
// Terms of bfloat16 are added as in matmul; on a GPU a place of padding then is a term 0 * weight in conv2d_forward and _backward.
// x may be a slice of channels; out is float32 or of the type of x and weight.
void conv2d_forward(const ConstArray& x, const ConstArray& weight, bool input_first, int64_t stride,
                    int64_t padding, const std::vector<int64_t>& leaves, const Array& out);
// grad (B, OH, OW, O), may be a slice of channels, grad_x (B, H, W, I). Channels of grad are cut at `leaves` (weight not
// input_first); a leaf is one chain over (kernel row, kernel column, channel) of the outputs that each pixel is under.
void conv2d_backward(const ConstArray& grad, const ConstArray& weight, bool input_first, int64_t stride,
                     int64_t padding, const std::vector<int64_t>& leaves, const Array& grad_x);
// grad_weight a stack of float32 weights, with leaves of samples as in matmul_backward_weight: per leaf one chain over
// samples, output rows, columns, padding left out. Pairs and blocks of bfloat16 start afresh at every sample.
void conv2d_backward_weight(const ConstArray& grad, const ConstArray& x, bool input_first, int64_t stride,
                            int64_t padding, const std::vector<int64_t>& leaves, const std::vector<int>& merges,
                            int64_t slot, bool accumulate, const Array& grad_weight);
// x, out (R, C): mean, variance (C) float32 over the R rows (training: written; else read). Biased variance, of two passes.
// Every sum is one chain per channel over rows. weight, bias (C), of x's type or float32.
void batch_norm_forward(const ConstArray& x, const ConstArray& weight, const ConstArray& bias, float epsilon,
                        bool training, const Array& mean, const Array& variance, const Array& out);
// Through the batch's statistics: weight * rstd * (grad - mean(grad) - xhat * mean(grad * xhat)), xhat = (x - mean) * rstd.
void batch_norm_backward(const ConstArray& grad, const ConstArray& x, const ConstArray& weight,
                         const ConstArray& mean, const ConstArray& variance, float epsilon, const Array& grad_x);
// grad, x (B, S, C) strided: one chain over samples, then positions.
void batch_norm_backward_weight(const ConstArray& grad, const ConstArray& x, const ConstArray& mean,
                                const ConstArray& variance, float epsilon, bool accumulate,
                                const Array& grad_weight, const Array& grad_bias);
// All (C) float32. total [+]= samples * (x * factor): a statistic of some samples, for its mean over a whole batch.
void add_statistic(const ConstArray& x, float factor, float samples, bool accumulate, const Array& total);
// running = running + momentum * (total / count - running).
void moving_average(const ConstArray& total, float count, float momentum, const Array& running);
// x (B, H, W, C), out (B, OH, OW, C), index (B, OH, OW, C) int32: place in the window; the first maximum, or NaN, wins.
// padding < size; grad_x is one chain over the windows of a pixel.
void max_pool_forward(const ConstArray& x, int64_t size, int64_t stride, int64_t padding, const Array& out,
                      const Array& index);
void max_pool_backward(const ConstArray& grad, const ConstArray& index, int64_t size, int64_t stride,
                       int64_t padding, const Array& grad_x);
// x (B, S, C) -> out (B, C): mean over S, one chain; backward spreads grad / S.
void mean_pool_forward(const ConstArray& x, const Array& out);
void mean_pool_backward(const ConstArray& grad, const Array& grad_x);

// --- optimizers over flat shards --------------------------------------------------------------------
// All (n): master, first, second, grad float32; weight (n) float32 or bfloat16 = rounded master (may alias a float32
// master). Loshchilov and Hutter (2019), every operation rounded to float32, settings computed in double:
// g = grad * grad_scale; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) (g g);
// master = master * (1 - learning_rate * weight_decay) - rate * (m / (sqrt(v) * scale + epsilon)),
// rate = learning_rate / (1 - beta1^step), scale = 1 / sqrt(1 - beta2^step). The first step is 1.
void adamw(const ConstArray& grad, float grad_scale, float learning_rate, float beta1, float beta2, float epsilon,
           float weight_decay, int64_t step, const Array& master, const Array& first, const Array& second,
           const Array& weight);
// momentum (n): m = mu m + grad * grad_scale; master = master - learning_rate * (m + weight_decay * master).
void sgd(const ConstArray& grad, float grad_scale, float learning_rate, float mu, float weight_decay,
         const Array& master, const Array& momentum, const Array& weight);

}  // namespace plait
