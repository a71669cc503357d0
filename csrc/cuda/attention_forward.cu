// Attention forward on tensor cores (Dao 2023, FlashAttention-2): a block has 64 queries of a head, each warp 16 of them, and
// goes through keys in blocks of 64. Each row keeps its maximum, a sum in each of four lanes, and its output.
#include "core/math.hpp"
#include "cuda/attention_copies.hpp"
#include "cuda/attention_tile.cuh"
#include "cuda/launch.cuh"

namespace plait {
namespace {

constexpr int QUERIES = 64, KEYS = 64;

struct ForwardCall {
  AttentionSizes n;
  Rows4<const bfloat16> q, k, v;
  Rows4<bfloat16> out;
  float* log_sum;
  bool aligned;
  int64_t blocks;  // of queries
};

// What the warp's rows `first` + lane / 4 and 8 later know of the keys so far. Scores are in powers of two.
struct SoftmaxRow {
  float peak, sum;

  // scores of a block's keys become probabilities; factor is what earlier sums and outputs are multiplied by.
  __device__ __forceinline__ float step(float (&s)[KEYS / 8][4], int half) {
    float top = peak;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) top = fmaxf(top, fmaxf(s[j][2 * half], s[j][2 * half + 1]));  // skips NaN
    top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
    top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
    const float base = top == -math::INF ? 0.0f : top;
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; e++) {
        s[j][e] = power_of_two(s[j][e] - base);
        total += s[j][e];
      }
    const float factor = power_of_two(peak - base);
    sum = fma(sum, factor, total);
    peak = top;
    return factor;
  }
};

template <int WIDE>
__global__ void __launch_bounds__(ATTENTION_THREADS, WIDE == 64 ? 3 : 2)
    forward_kernel(const __grid_constant__ ForwardCall call) {
  constexpr SharedAddress PART = 64 * WIDE * 2;
  const AttentionSizes& n = call.n;
  const SharedAddress shared = shared_address(dynamic_shared<unsigned char>()), at_k = shared + PART, at_v = shared + 2 * PART;
  const int64_t rows = n.samples * n.heads, row = int64_t(blockIdx.x) % rows;
  // The last queries see the most keys: they come first.
  const int64_t first = (call.blocks - 1 - int64_t(blockIdx.x) / rows) * QUERIES;
  const int64_t sample = row / n.heads, head = row % n.heads, group = head / n.heads_of_group();
  const bfloat16 *k_head = call.k.head(sample, group), *v_head = call.v.head(sample, group);
  const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
  const int64_t mine = first + warp * 16 + lane / 4;  // and mine + 8
  const AlongHead<WIDE, true> read_q(shared, warp * 16);
  const AlongHead<WIDE, false> read_k(at_k, 0);
  const AlongRows<WIDE> read_v(at_v);

  copy_rows<WIDE, QUERIES>(shared, call.q.head(sample, head), call.q.row_stride, first, n.queries, n.size);
  const int64_t visible = n.visible(first, QUERIES);
  if (visible > 0) copy_rows<WIDE, KEYS>(at_k, k_head, call.k.row_stride, 0, n.keys, n.size);
  commit_copies();

  float o[WIDE / 8][4] = {};
  SoftmaxRow softmax[2] = {{-math::INF, 0.0f}, {-math::INF, 0.0f}};
  uint32_t q[WIDE / 16][4];
  const float scale = n.scale * LOG2_E;
  for (int64_t j = 0; j < visible; j += KEYS) {
    wait_copies<0>();
    __syncthreads();  // keys are there, and all have read the values of the block before
    copy_rows<WIDE, KEYS>(at_v, v_head, call.v.row_stride, j, n.keys, n.size);
    commit_copies();
    if (j == 0) {
#pragma unroll
      for (int k = 0; k < WIDE / 16; k++) read_q.load(q[k], 0, k);
    }
    float s[KEYS / 8][4];
    scores<WIDE, KEYS / 16>(
        s,
        [&](uint32_t (&a)[4], int k) {
          for (int e = 0; e < 4; e++) a[e] = q[k][e];
        },
        read_k, 0);
    wait_copies<0>();
    __syncthreads();  // values are there, and all have read the keys
    if (j + KEYS < visible) copy_rows<WIDE, KEYS>(at_k, k_head, call.k.row_stride, j + KEYS, n.keys, n.size);
    commit_copies();

    // The keys of this block that rows see: up to last, last + 8.
    const int64_t end = n.keys - j - 1;
    const bool masked = end < KEYS - 1 || (n.causal && first + warp * 16 + n.offset() < j + KEYS - 1);
    const int64_t sees = n.causal ? mine + n.offset() - j : KEYS, sees_too = n.causal ? sees + 8 : KEYS;
    const int last = int(sees < end ? sees < -1 ? -1 : sees : end),
              last_too = int(sees_too < end ? sees_too < -1 ? -1 : sees_too : end);
#pragma unroll
    for (int f = 0; f < KEYS / 8; f++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[f][e] *= scale;
    if (masked) {
#pragma unroll
      for (int f = 0; f < KEYS / 8; f++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (f * 8 + lane % 4 * 2 + e % 2 > (e < 2 ? last : last_too)) s[f][e] = -math::INF;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float factor = softmax[half].step(s, half);
#pragma unroll
      for (int f = 0; f < WIDE / 8; f++) o[f][2 * half] *= factor, o[f][2 * half + 1] *= factor;
    }
    add_product<WIDE, KEYS / 16>(o, s, read_v, 0);
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float sum = softmax[half].sum;
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
    for (int f = 0; f < WIDE / 8; f++) o[f][2 * half] *= inverse, o[f][2 * half + 1] *= inverse;
    if (lane % 4 == 0 && mine + 8 * half < n.queries)
      call.log_sum[row * n.queries + mine + 8 * half] = fma(softmax[half].peak, LN_2, math::log(sum));
  }
  wait_copies<0>();  // of queries that see no key
  store_rows<WIDE>(o, call.out.head(sample, head), call.out.row_stride, first + warp * 16, n.queries, n.size, call.aligned);
}

}  // namespace

void attention_forward_tiles(const AttentionSizes& n, const AttentionArrays& x, const Array& out, const Array& log_sum) {
  ConstArray q = x.q, k = x.k, v = x.v;
  take_aligned({&q, &k, &v}, 0);
  const int64_t blocks = (n.queries + QUERIES - 1) / QUERIES;
  const ForwardCall call = {n,
                            rows4<bfloat16>(q),
                            rows4<bfloat16>(k),
                            rows4<bfloat16>(v),
                            rows4<bfloat16>(out),
                            log_sum.as<float>(),
                            stores_aligned(out),
                            blocks};
  const bool wide = n.size > 64;
  launch(PLAIT_AT("attention_forward"), wide ? forward_kernel<128> : forward_kernel<64>,
         {unsigned(blocks * n.samples * n.heads), ATTENTION_THREADS, size_t(3 * 64 * (wide ? 128 : 64) * 2)}, call);
}

}  // namespace plait
