// Attention for float32 and for large heads, without tensor cores: blocks of `side` queries meet blocks of `side` keys in
// shared memory as float32. Scores are one chain over the head size, everything else chains over rows, ascending.
#include <type_traits>

#include "core/math.hpp"
#include "cuda/attention_shape.hpp"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/shared.cuh"
#include "cuda/warp.cuh"

namespace plait {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP, MOST_SHARED = 96 * 1024;

// `arrays` of side rows of a head, two of scores, four of a row's numbers, in floats; rows are side + 1, size + 1 apart.
int64_t shared_floats(int side, int size, int arrays) {
  return int64_t(side) * (arrays * (size + 1) + 2 * (side + 1) + 4);
}
// By the head size alone.
int side_of(const char* call, int size, int arrays) {
  int side = 32;
  while (side > 1 && shared_floats(side, size, arrays) * 4 > MOST_SHARED) side /= 2;
  PLAIT_CHECK(shared_floats(side, size, arrays) * 4 <= MOST_SHARED, call, "heads of size ", size, " are too large for a GPU");
  return side;
}

// side rows from `first` on, zeros beyond `rows`.
template <class T>
__device__ void load_rows(float* to, const T* head, int64_t stride, int64_t first, int64_t rows, int side, int size) {
  for (int i = int(threadIdx.x); i < side * size; i += THREADS) {
    const int r = i / size, d = i % size;
    to[r * (size + 1) + d] = first + r < rows ? to_float(head[(first + r) * stride + d]) : 0.0f;
  }
}
template <class T>
__device__ void store_rows(const float* from, T* head, int64_t stride, int64_t first, int64_t rows, int side, int size) {
  for (int i = int(threadIdx.x); i < side * size; i += THREADS) {
    const int r = i / size, d = i % size;
    if (first + r < rows) head[(first + r) * stride + d] = from_float<T>(from[r * (size + 1) + d] + 0.0f);  // -0 tells of masks
  }
}
// As a product of two matrices of T takes it.
template <class T>
__device__ __forceinline__ float factor_of(float x) {
  return std::is_same<T, float>::value ? x : to_float(rounded(x));
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int far = 16; far > 0; far /= 2) x += __shfl_xor_sync(ALL_LANES, x, far);
  return x;
}

template <class T>
struct PlainForward {
  AttentionSizes n;
  Rows4<const T> q, k, v;
  Rows4<T> out;
  float* log_sum;
  int side;
  int64_t blocks;
};

template <class T>
__global__ void __launch_bounds__(THREADS) plain_forward_kernel(const __grid_constant__ PlainForward<T> call) {
  const AttentionSizes& n = call.n;
  const int side = call.side, size = n.size, wide = size + 1, tall = side + 1;
  float *const q = dynamic_shared<float>(), *const k = q + side * wide, *const v = k + side * wide, *const o = v + side * wide;
  float *const s = o + side * wide, *const peak = s + 2 * side * tall, *const sum = peak + side, *const factor = sum + side;
  const int64_t rows = n.samples * n.heads, row = int64_t(blockIdx.x) % rows;
  const int64_t first = (call.blocks - 1 - int64_t(blockIdx.x) / rows) * side;
  const int64_t sample = row / n.heads, head = row % n.heads, group = head / n.heads_of_group();
  const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP;
  load_rows(q, call.q.head(sample, head), call.q.row_stride, first, n.queries, side, size);
  for (int i = int(threadIdx.x); i < side * wide; i += THREADS) o[i] = 0.0f;
  for (int i = int(threadIdx.x); i < side; i += THREADS) peak[i] = -math::INF, sum[i] = 0.0f;
  const int64_t visible = n.visible(first, side);
  for (int64_t j = 0; j < visible; j += side) {
    load_rows(k, call.k.head(sample, group), call.k.row_stride, j, n.keys, side, size);
    load_rows(v, call.v.head(sample, group), call.v.row_stride, j, n.keys, side, size);
    __syncthreads();
    for (int i = int(threadIdx.x); i < side * side; i += THREADS) {
      const int r = i / side, c = i % side;
      float score = 0.0f;
      for (int d = 0; d < size; d++) score = fma(q[r * wide + d], k[c * wide + d], score);
      const bool seen = j + c < n.keys && (!n.causal || j + c <= first + r + n.offset());
      s[r * tall + c] = seen ? score * n.scale : -math::INF;
    }
    __syncthreads();
    for (int r = warp; r < side; r += WARPS) {
      const float x = lane < side ? s[r * tall + lane] : -math::INF, before = peak[r];
      float top = warp_max(x == x ? x : -math::INF);  // without NaN, which the exponentials bring into the sum
      top = before > top ? before : top;
      const float base = top == -math::INF ? 0.0f : top;
      const float p = math::exp(x - base), total = warp_sum(p), f = math::exp(before - base);
      if (lane < side) s[r * tall + lane] = factor_of<T>(p);
      if (lane == 0) factor[r] = f, sum[r] = fma(sum[r], f, total), peak[r] = top;
    }
    __syncthreads();
    for (int i = int(threadIdx.x); i < side * size; i += THREADS) {
      const int r = i / size, d = i % size;
      float x = o[r * wide + d] * factor[r];
      for (int c = 0; c < side; c++) x = fma(s[r * tall + c], v[c * wide + d], x);
      o[r * wide + d] = x;
    }
    __syncthreads();
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < side * size; i += THREADS) {
    const float total = sum[i / size];
    o[i / size * wide + i % size] *= total == 0.0f ? 0.0f : 1.0f / total;
  }
  for (int r = int(threadIdx.x); r < side && first + r < n.queries; r += THREADS)
    call.log_sum[row * n.queries + first + r] = peak[r] + math::log(sum[r]);
  __syncthreads();
  store_rows(o, call.out.head(sample, head), call.out.row_stride, first, n.queries, side, size);
}

// delta = the sum of grad * out over a row, a warp each.
template <class T>
__global__ void __launch_bounds__(THREADS)
    plain_delta_kernel(AttentionSizes n, Rows4<const T> grad, Rows4<const T> out, float* delta) {
  const int64_t rows = n.samples * n.heads * n.queries, step = int64_t(gridDim.x) * WARPS;
  for (int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / WARP; row < rows; row += step) {
    const int64_t query = row % n.queries, head = row / n.queries % n.heads, sample = row / n.queries / n.heads;
    float sum = 0.0f;
    for (int d = int(threadIdx.x) % WARP; d < n.size; d += WARP)
      sum = fma(to_float(grad.head(sample, head)[query * grad.row_stride + d]),
                to_float(out.head(sample, head)[query * out.row_stride + d]), sum);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[row] = sum;
  }
}

template <class T>
struct PlainBackward {
  AttentionSizes n;
  Rows4<const T> grad, q, k, v;
  Rows4<T> grad_q, grad_k, grad_v;
  const float *log_sum, *delta;
  int side;
  int64_t blocks;
};

// OF_KEYS: the block's rows are keys and values, others are queries and gradients of all heads of the group, for grad_k and
// grad_v; else the other way round, for grad_q.
template <class T, bool OF_KEYS>
__global__ void __launch_bounds__(THREADS) plain_backward_kernel(const __grid_constant__ PlainBackward<T> call) {
  const AttentionSizes& n = call.n;
  const int side = call.side, size = n.size, wide = size + 1, tall = side + 1;
  float *const mine = dynamic_shared<float>(), *const mine_too = mine + side * wide;
  float *const other = mine_too + side * wide, *const other_too = other + side * wide;
  float *const sum = other_too + side * wide, *const sum_too = sum + side * wide;  // of ds * other, of p * other_too
  float *const p = sum_too + side * wide, *const ds = p + side * tall;
  const int64_t own_heads = OF_KEYS ? n.groups : n.heads, rows = n.samples * own_heads, row = int64_t(blockIdx.x) % rows;
  const int64_t first = int64_t(blockIdx.x) / rows * side, sample = row / own_heads, own = row % own_heads;
  const int64_t group = OF_KEYS ? own : own / n.heads_of_group(), heads = OF_KEYS ? n.heads_of_group() : 1;
  const Rows4<const T>&a = OF_KEYS ? call.k : call.q, &b = OF_KEYS ? call.v : call.grad;
  const Rows4<const T>&c = OF_KEYS ? call.q : call.k, &e = OF_KEYS ? call.grad : call.v;
  const int64_t length = OF_KEYS ? n.keys : n.queries, others = OF_KEYS ? n.queries : n.keys;
  load_rows(mine, a.head(sample, own), a.row_stride, first, length, side, size);
  load_rows(mine_too, b.head(sample, own), b.row_stride, first, length, side, size);
  for (int i = int(threadIdx.x); i < 2 * side * wide; i += THREADS) sum[i] = 0.0f;
  int64_t begin = OF_KEYS && n.causal ? first - n.offset() : 0;
  begin = begin < 0 ? 0 : begin / side * side;
  const int64_t end = OF_KEYS ? others : n.visible(first, side);
  for (int64_t h = 0; h < heads; h++) {
    const int64_t head = OF_KEYS ? group * heads + h : own, other_head = OF_KEYS ? head : group;
    for (int64_t j = begin; j < end; j += side) {
      __syncthreads();
      load_rows(other, c.head(sample, other_head), c.row_stride, j, others, side, size);
      load_rows(other_too, e.head(sample, other_head), e.row_stride, j, others, side, size);
      __syncthreads();
      for (int i = int(threadIdx.x); i < side * side; i += THREADS) {
        const int x = i / side, y = i % side;
        const int64_t query = OF_KEYS ? j + y : first + x, key = OF_KEYS ? first + x : j + y;
        float score = 0.0f, grad = 0.0f;
        for (int d = 0; d < size; d++) {
          score = fma(mine[x * wide + d], other[y * wide + d], score);
          grad = fma(mine_too[x * wide + d], other_too[y * wide + d], grad);
        }
        float weight = 0.0f, slope = 0.0f;
        if (query < n.queries && key < n.keys && (!n.causal || key <= query + n.offset())) {
          const int64_t at = (sample * n.heads + head) * n.queries + query;
          weight = math::exp(score * n.scale - call.log_sum[at]);
          slope = weight * (grad - call.delta[at]) * n.scale;
        }
        p[x * tall + y] = factor_of<T>(weight), ds[x * tall + y] = factor_of<T>(slope);
      }
      __syncthreads();
      for (int i = int(threadIdx.x); i < side * size; i += THREADS) {
        const int x = i / size, d = i % size;
        float first_sum = sum[x * wide + d], second_sum = sum_too[x * wide + d];
        for (int y = 0; y < side; y++) {
          first_sum = fma(ds[x * tall + y], other[y * wide + d], first_sum);
          if (OF_KEYS) second_sum = fma(p[x * tall + y], other_too[y * wide + d], second_sum);
        }
        sum[x * wide + d] = first_sum, sum_too[x * wide + d] = second_sum;
      }
    }
  }
  __syncthreads();
  const Rows4<T>& grad_own = OF_KEYS ? call.grad_k : call.grad_q;
  store_rows(sum, grad_own.head(sample, own), grad_own.row_stride, first, length, side, size);
  if (OF_KEYS) store_rows(sum_too, call.grad_v.head(sample, own), call.grad_v.row_stride, first, length, side, size);
}

template <class T>
void forward(const AttentionSizes& n, const AttentionArrays& x, const Array& out, const Array& log_sum) {
  const int side = side_of("attention_forward", n.size, 4);
  const int64_t blocks = (n.queries + side - 1) / side;
  const PlainForward<T> call = {n,    rows4<T>(x.q), rows4<T>(x.k), rows4<T>(x.v), rows4<T>(out), log_sum.as<float>(),
                                side, blocks};
  launch(PLAIT_AT("attention_forward"), plain_forward_kernel<T>,
         {unsigned(blocks * n.samples * n.heads), THREADS, size_t(shared_floats(side, n.size, 4) * 4)}, call);
}

template <class T>
void backward(const AttentionSizes& n, const AttentionArrays& x) {
  const int side = side_of("attention_backward", n.size, 6);
  const size_t shared = size_t(shared_floats(side, n.size, 6) * 4);
  const int64_t rows = n.samples * n.heads * n.queries;
  float* const delta = scratch<float>(rows);
  launch(PLAIT_AT("attention_backward, delta"), plain_delta_kernel<T>, {blocks_for(rows, WARPS), THREADS}, n, rows4<T>(x.grad),
         rows4<T>(x.out), delta);
  PlainBackward<T> call = {n,
                           rows4<T>(x.grad),
                           rows4<T>(x.q),
                           rows4<T>(x.k),
                           rows4<T>(x.v),
                           rows4<T>(x.grad_q),
                           rows4<T>(x.grad_k),
                           rows4<T>(x.grad_v),
                           x.log_sum.as<float>(),
                           delta,
                           side,
                           0};
  call.blocks = (n.keys + side - 1) / side;
  launch(PLAIT_AT("attention_backward, keys"), plain_backward_kernel<T, true>,
         {unsigned(call.blocks * n.samples * n.groups), THREADS, shared}, call);
  call.blocks = (n.queries + side - 1) / side;
  launch(PLAIT_AT("attention_backward, queries"), plain_backward_kernel<T, false>,
         {unsigned(call.blocks * n.samples * n.heads), THREADS, shared}, call);
}

}  // namespace

void attention_forward_plain(const AttentionSizes& n, const AttentionArrays& x, const Array& out, const Array& log_sum) {
  PLAIT_FLOATS(x.q.dtype, "attention_forward", [&](auto zero) { forward<decltype(zero)>(n, x, out, log_sum); });
}
void attention_backward_plain(const AttentionSizes& n, const AttentionArrays& x) {
  PLAIT_FLOATS(x.q.dtype, "attention_backward", [&](auto zero) { backward<decltype(zero)>(n, x); });
}

}  // namespace plait
