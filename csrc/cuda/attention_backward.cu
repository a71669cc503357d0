// Attention backward on tensor cores, without atomics: one kernel has blocks of keys and goes through the queries that see
// them, head after head of a group, for grad_k and grad_v; another has blocks of queries and goes through keys, for grad_q.
// Both make the probabilities again from log_sum. delta is the sum of grad * out over a row.
#include "cuda/attention_copies.hpp"
#include "cuda/attention_tile.cuh"
#include "cuda/launch.cuh"

namespace plait {
namespace {

constexpr int ROWS = 64;  // queries or keys of a block, 16 of a warp
// Of the other side at a time.
template <int WIDE>
constexpr int OTHERS = WIDE == 64 ? 64 : 32;

struct BackwardCall {
  AttentionSizes n;
  Rows4<const bfloat16> grad, q, k, v;
  Rows4<bfloat16> grad_q, grad_k, grad_v;
  const float *logs, *delta;  // (samples, heads, queries): log_sum in powers of two
  bool aligned_q, aligned_k, aligned_v;
  int64_t blocks;
};

// WIDE / 8 lanes have a row: each the chain of eight elements, then halves fold.
template <int WIDE>
__global__ void __launch_bounds__(256) delta_kernel(AttentionSizes n, Rows4<const bfloat16> grad, Rows4<const bfloat16> out,
                                                    const float* log_sum, float* logs, float* delta) {
  constexpr int LANES = WIDE / 8;
  const int64_t rows = n.samples * n.heads * n.queries, step = int64_t(gridDim.x) * blockDim.x / LANES;
  const int64_t whole = (rows + step - 1) / step * step;  // all lanes of a warp go on together
  const int lane = int(threadIdx.x) % LANES;
  for (int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / LANES; row < whole; row += step) {
    float sum = 0.0f;
    if (row < rows) {
      const int64_t query = row % n.queries, head = row / n.queries % n.heads, sample = row / n.queries / n.heads;
      const bfloat16* const g = grad.head(sample, head) + query * grad.row_stride + lane * 8;
      const bfloat16* const o = out.head(sample, head) + query * out.row_stride + lane * 8;
      const int left = n.size - lane * 8;
      if (left >= 8) {
        uint4 x = *reinterpret_cast<const uint4*>(g), y = *reinterpret_cast<const uint4*>(o);
        const uint32_t a[4] = {x.x, x.y, x.z, x.w}, b[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
          sum = fma(__uint_as_float(a[i] << 16), __uint_as_float(b[i] << 16), sum);
          sum = fma(__uint_as_float(a[i] & 0xffff0000u), __uint_as_float(b[i] & 0xffff0000u), sum);
        }
      } else {
        for (int i = 0; i < left; i++) sum = fma(to_float(g[i]), to_float(o[i]), sum);
      }
    }
#pragma unroll
    for (int far = LANES / 2; far > 0; far /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, far);
    if (row < rows && lane == 0) delta[row] = sum, logs[row] = log_sum[row] * LOG2_E;
  }
}

// p = 2^(scale s - log), ds = p (dp - delta) scale, for one pair of query and key.
__device__ __forceinline__ void through_softmax(float& s, float& dp, float scale, float log, float delta, float plain_scale,
                                                bool seen) {
  const float p = power_of_two(fma(s, scale, -log)), ds = p * (dp - delta) * plain_scale;
  s = seen ? p : 0.0f;  // p may be NaN where it is not seen
  dp = seen ? ds : 0.0f;
}

// Shared memory: 64 rows of k and of v; then two stages of queries and gradients with their logs and deltas.
template <int WIDE>
__global__ void __launch_bounds__(ATTENTION_THREADS, 2) keys_kernel(const __grid_constant__ BackwardCall call) {
  constexpr int QUERIES = OTHERS<WIDE>;
  constexpr SharedAddress PART = ROWS * WIDE * 2, SIDE = QUERIES * WIDE * 2, STAGE = 2 * SIDE + 1024;
  const AttentionSizes& n = call.n;
  unsigned char* const memory = dynamic_shared<unsigned char>();
  const SharedAddress shared = shared_address(memory), at_q = shared + 2 * PART, at_grad = at_q + SIDE, at_log = at_grad + SIDE;
  const int64_t pairs = n.samples * n.groups, pair = int64_t(blockIdx.x) % pairs;
  const int64_t first = int64_t(blockIdx.x) / pairs * ROWS;  // the first keys are seen by the most queries
  const int64_t sample = pair / n.groups, group = pair % n.groups;
  const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
  const AlongHead<WIDE, true> read_k(shared, warp * 16), read_v(shared + PART, warp * 16);
  const AlongHead<WIDE, false> q_along(at_q, 0), grad_along(at_grad, 0);
  const AlongRows<WIDE> q_rows(at_q), grad_rows(at_grad);

  copy_rows<WIDE, ROWS>(shared, call.k.head(sample, group), call.k.row_stride, first, n.keys, n.size);
  copy_rows<WIDE, ROWS>(shared + PART, call.v.head(sample, group), call.v.row_stride, first, n.keys, n.size);
  // Queries from the first that sees a key of the block.
  int64_t begin = n.causal ? first - n.offset() : 0;
  begin = begin < 0 ? 0 : begin / QUERIES * QUERIES;
  const int64_t blocks = begin < n.queries ? (n.queries - begin + QUERIES - 1) / QUERIES : 0;
  const int64_t steps = blocks * n.heads_of_group();
  int64_t next_head = group * n.heads_of_group(), next_query = begin;
  SharedAddress stage = 0;
  const auto start = [&](SharedAddress to) {
    copy_rows<WIDE, QUERIES>(at_q + to, call.q.head(sample, next_head), call.q.row_stride, next_query, n.queries, n.size);
    copy_rows<WIDE, QUERIES>(at_grad + to, call.grad.head(sample, next_head), call.grad.row_stride, next_query, n.queries,
                             n.size);
    const int t = int(threadIdx.x), i = t % QUERIES;
    if (t < 2 * QUERIES) {
      const float* const from = (t < QUERIES ? call.logs : call.delta) + (sample * n.heads + next_head) * n.queries;
      const bool there = next_query + i < n.queries;
      copy_word_async(at_log + to + SharedAddress(t * 4), from + (there ? next_query + i : 0), there);
    }
    next_query += QUERIES;
    if (next_query >= n.queries) next_query = begin, next_head++;
  };
  if (steps > 0) start(0);
  commit_copies();

  float dk[WIDE / 8][4] = {}, dv[WIDE / 8][4] = {};
  const float scale = n.scale * LOG2_E;
  int64_t query = begin;
  for (int64_t step = 0; step < steps; step++) {
    wait_copies<0>();
    __syncthreads();  // the stage is there, and all have read the other
    if (step + 1 < steps) start(STAGE - stage);
    commit_copies();
    float p[QUERIES / 8][4], ds[QUERIES / 8][4];  // (16 keys, queries)
    scores<WIDE, QUERIES / 16>(p, [&](uint32_t (&a)[4], int k) { read_k.load(a, 0, k); }, q_along, stage);
    scores<WIDE, QUERIES / 16>(ds, [&](uint32_t (&a)[4], int k) { read_v.load(a, 0, k); }, grad_along, stage);
    // This thread's first key is seen by queries of this block from `from` on, its other, 8 later, from 8 later on.
    const int64_t apart = n.causal ? first + warp * 16 + lane / 4 - n.offset() - query : -8;
    const int from = int(apart < -8 ? -8 : apart > QUERIES ? QUERIES : apart);
    const float* const logs = reinterpret_cast<const float*>(memory + 2 * PART + 2 * SIDE + stage);
#pragma unroll
    for (int f = 0; f < QUERIES / 8; f++) {
      const int i = f * 8 + lane % 4 * 2;
      const float2 log = *reinterpret_cast<const float2*>(logs + i),
                   delta = *reinterpret_cast<const float2*>(logs + QUERIES + i);
#pragma unroll
      for (int e = 0; e < 4; e++)
        through_softmax(p[f][e], ds[f][e], scale, e % 2 ? log.y : log.x, e % 2 ? delta.y : delta.x, n.scale,
                        i + e % 2 >= (e < 2 ? from : from + 8));
    }
    add_product<WIDE, QUERIES / 16>(dv, p, grad_rows, stage);
    add_product<WIDE, QUERIES / 16>(dk, ds, q_rows, stage);
    stage = STAGE - stage;
    query += QUERIES;
    if (query >= n.queries) query = begin;
  }
  wait_copies<0>();
  store_rows<WIDE>(dk, call.grad_k.head(sample, group), call.grad_k.row_stride, first + warp * 16, n.keys, n.size,
                   call.aligned_k);
  store_rows<WIDE>(dv, call.grad_v.head(sample, group), call.grad_v.row_stride, first + warp * 16, n.keys, n.size,
                   call.aligned_v);
}

// Shared memory: two stages of keys and values, before them the queries and their gradients.
template <int WIDE>
__global__ void __launch_bounds__(ATTENTION_THREADS, 2) queries_kernel(const __grid_constant__ BackwardCall call) {
  constexpr int KEYS = OTHERS<WIDE>;
  constexpr SharedAddress PART = ROWS * WIDE * 2, SIDE = KEYS * WIDE * 2, STAGE = 2 * SIDE;
  const AttentionSizes& n = call.n;
  const SharedAddress shared = shared_address(dynamic_shared<unsigned char>()), at_k = shared + 2 * PART, at_v = at_k + SIDE;
  const int64_t rows = n.samples * n.heads, row = int64_t(blockIdx.x) % rows;
  const int64_t first = (call.blocks - 1 - int64_t(blockIdx.x) / rows) * ROWS;
  const int64_t sample = row / n.heads, head = row % n.heads, group = head / n.heads_of_group();
  const bfloat16 *k_head = call.k.head(sample, group), *v_head = call.v.head(sample, group);
  const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
  const int64_t mine = first + warp * 16 + lane / 4;
  const AlongHead<WIDE, true> read_q(shared, warp * 16), read_grad(shared + PART, warp * 16);
  const AlongHead<WIDE, false> k_along(at_k, 0), v_along(at_v, 0);
  const AlongRows<WIDE> k_rows(at_k);

  copy_rows<WIDE, ROWS>(shared, call.q.head(sample, head), call.q.row_stride, first, n.queries, n.size);
  copy_rows<WIDE, ROWS>(shared + PART, call.grad.head(sample, head), call.grad.row_stride, first, n.queries, n.size);
  const int64_t visible = n.visible(first, ROWS);
  const auto start = [&](int64_t j, SharedAddress to) {
    copy_rows<WIDE, KEYS>(at_k + to, k_head, call.k.row_stride, j, n.keys, n.size);
    copy_rows<WIDE, KEYS>(at_v + to, v_head, call.v.row_stride, j, n.keys, n.size);
  };
  if (visible > 0) start(0, 0);
  commit_copies();
  float log[2], delta[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const bool there = mine + 8 * h < n.queries;
    log[h] = there ? call.logs[row * n.queries + mine + 8 * h] : 0.0f;
    delta[h] = there ? call.delta[row * n.queries + mine + 8 * h] : 0.0f;
  }

  float dq[WIDE / 8][4] = {};
  const float scale = n.scale * LOG2_E;
  SharedAddress stage = 0;
  for (int64_t j = 0; j < visible; j += KEYS) {
    wait_copies<0>();
    __syncthreads();  // the stage is there, and all have read the other
    if (j + KEYS < visible) start(j + KEYS, STAGE - stage);
    commit_copies();
    float p[KEYS / 8][4], ds[KEYS / 8][4];
    scores<WIDE, KEYS / 16>(p, [&](uint32_t (&a)[4], int k) { read_q.load(a, 0, k); }, k_along, stage);
    scores<WIDE, KEYS / 16>(ds, [&](uint32_t (&a)[4], int k) { read_grad.load(a, 0, k); }, v_along, stage);
    const int64_t end = n.keys - j - 1, sees = n.causal ? mine + n.offset() - j : KEYS, sees_too = n.causal ? sees + 8 : KEYS;
    const int last = int(sees < end ? sees < -1 ? -1 : sees : end),
              last_too = int(sees_too < end ? sees_too < -1 ? -1 : sees_too : end);
#pragma unroll
    for (int f = 0; f < KEYS / 8; f++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        through_softmax(p[f][e], ds[f][e], scale, log[e / 2], delta[e / 2], n.scale,
                        f * 8 + lane % 4 * 2 + e % 2 <= (e < 2 ? last : last_too));
    add_product<WIDE, KEYS / 16>(dq, ds, k_rows, stage);
    stage = STAGE - stage;
  }
  wait_copies<0>();
  store_rows<WIDE>(dq, call.grad_q.head(sample, head), call.grad_q.row_stride, first + warp * 16, n.queries, n.size,
                   call.aligned_q);
}

template <int WIDE>
void run(const AttentionSizes& n, const AttentionArrays& x) {
  ConstArray grad = x.grad, q = x.q, k = x.k, v = x.v, out = x.out;
  const int64_t rows = n.samples * n.heads * n.queries;
  float* const logs = take_aligned({&grad, &q, &k, &v, &out}, 2 * rows);
  float* const delta = logs + rows;
  launch(PLAIT_AT("attention_backward, delta"), delta_kernel<WIDE>, {blocks_for(rows * (WIDE / 8), 256), 256}, n,
         rows4<bfloat16>(grad), rows4<bfloat16>(out), x.log_sum.as<float>(), logs, delta);
  BackwardCall call = {n,
                       rows4<bfloat16>(grad),
                       rows4<bfloat16>(q),
                       rows4<bfloat16>(k),
                       rows4<bfloat16>(v),
                       rows4<bfloat16>(x.grad_q),
                       rows4<bfloat16>(x.grad_k),
                       rows4<bfloat16>(x.grad_v),
                       logs,
                       delta,
                       stores_aligned(x.grad_q),
                       stores_aligned(x.grad_k),
                       stores_aligned(x.grad_v),
                       0};
  constexpr size_t SHARED = size_t(2 * ROWS + 4 * OTHERS<WIDE>) * WIDE * 2;
  call.blocks = (n.keys + ROWS - 1) / ROWS;
  launch(PLAIT_AT("attention_backward, keys"), keys_kernel<WIDE>,
         {unsigned(call.blocks * n.samples * n.groups), ATTENTION_THREADS, SHARED + 2048}, call);
  call.blocks = (n.queries + ROWS - 1) / ROWS;
  launch(PLAIT_AT("attention_backward, queries"), queries_kernel<WIDE>,
         {unsigned(call.blocks * n.samples * n.heads), ATTENTION_THREADS, SHARED}, call);
}

}  // namespace

void attention_backward_tiles(const AttentionSizes& n, const AttentionArrays& x) {
  n.size > 64 ? run<128>(n, x) : run<64>(n, x);
}

}  // namespace plait
