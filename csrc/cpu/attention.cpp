// Attention without a score matrix (Dao et al. 2022): an online softmax over blocks of keys,
// recomputed in backward from log_sum. Blocks are 64 queries x 64 keys for every head size, counted
// from query 0 and key 0 (attention_block.hpp). Orders of addition: a score is one chain over the
// head size; a row's sum is one chain per key block, joined block after block; out, grad_q are
// chains over keys, grad_k, grad_v over queries (grouped heads one after another), all ascending.
// Masked keys add exact zeros or are skipped, which leaves the same bits; only what is not finite,
// in v or in backward in k, may reach up to 15 queries before it (31 in bfloat16). Each thread keeps
// some blocks, in backward also grad_k and grad_v of one head: 8 bytes x keys x head size.
#include <type_traits>

#include "cpu/attention_pairs.hpp"
#include "core/expect.hpp"
#include "cpu/math.hpp"
#include "cpu/scratch.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

using namespace attention;

constexpr int64_t WORTH_A_THREAD = 1 << 18;  // products of query, key and head size

Sizes sizes_of(const char* call, const ConstArray& q, const ConstArray& k, const ConstArray& v,
               const ConstArray& out, const ConstArray& log_sum, bool causal) {
  expect_ndim(call, "q", q, 4);
  expect_ndim(call, "k", k, 4);
  const Sizes n{q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], causal};
  expect_shape(call, "k", k, {n.samples, n.keys, n.groups, n.size});
  expect_shape(call, "v", v, {n.samples, n.keys, n.groups, n.size});
  expect_shape(call, "out", out, {n.samples, n.queries, n.heads, n.size});
  expect_array(call, "log_sum", log_sum, DType::float32, {n.samples, n.heads, n.queries});
  PLAIT_CHECK(n.groups > 0 ? n.heads % n.groups == 0 : n.heads == 0, call, n.heads,
              " heads are no multiple of ", n.groups, " key-value heads");
  const char* names[] = {"q", "k", "v", "out"};
  const ConstArray* arrays[] = {&q, &k, &v, &out};
  for (int i = 0; i < 4; i++) {
    expect_dtype(call, names[i], *arrays[i], q.dtype);
    expect_unit_last(call, names[i], *arrays[i]);
  }
  return n;
}

// On float32; attention_pairs.cpp has those on bfloat16.
struct Chains {
  void forward_block(const Sizes& n, Head<const float> q, Head<const float> k, Head<const float> v,
                     float scale, int64_t first_query, Head<float> out, float* log_sum) const;
  void backward_group(const Sizes& n, const Backward& x, int64_t sample, int64_t group) const;
};

void Chains::forward_block(const Sizes& n, Head<const float> q, Head<const float> k,
                           Head<const float> v, float scale, int64_t first_query, Head<float> out,
                           float* log_sum) const {
  thread_local Scratch scratch;
  const int64_t width = padded(n.size), count = std::min(QUERIES, n.queries - first_query);
  float* q_turned = scratch.get<float>((2 * n.size + KEYS + 3) * QUERIES + 2 * KEYS * width);
  float* o = q_turned + n.size * QUERIES;  // (size, 64)
  float* scores = o + n.size * QUERIES;
  float *peak = scores + KEYS * QUERIES, *sum = peak + QUERIES, *factor = sum + QUERIES;
  float *k_rows = factor + QUERIES, *v_rows = k_rows + KEYS * width;  // (64, width)
  turn_rows(q.row(first_query), q.stride, count, n.size, q_turned);
  std::fill_n(o, n.size * QUERIES, 0.0f);
  std::fill_n(peak, QUERIES, -math::INF);
  std::fill_n(sum, QUERIES, 0.0f);
  const int64_t visible = n.visible(first_query);
  for (int64_t j = 0; j < visible; j += KEYS) {
    const Pairing pair(n, first_query, count, j, std::min(KEYS, visible - j), 16);
    copy_rows(k.row(j), k.stride, pair.keys, n.size, k_rows);
    copy_rows(v.row(j), v.stride, pair.keys, n.size, v_rows);
    for (int64_t i = 0; i < count; i += pair.queries) {
      const int64_t seen = pair.seen(i);
      if (seen == 0) continue;
      multiply({k_rows, width, 1, q_turned + i, QUERIES, scores + i, QUERIES, seen, pair.queries,
                n.size, nullptr, false});
      softmax_step(scores + i, seen, pair.queries, scale, pair.last_of(i), peak + i, sum + i,
                   factor + i, scores + i);
      multiply({v_rows, 1, width, scores + i, QUERIES, o + i, QUERIES, n.size, pair.queries, seen,
                factor + i, true});
    }
  }
  softmax_end(o, n.size, peak, sum, factor);
  std::copy_n(factor, count, log_sum);
  store_turned(o, count, n.size, out.row(first_query), out.stride);
}

void Chains::backward_group(const Sizes& n, const Backward& x, int64_t sample,
                            int64_t group) const {
  thread_local Scratch sums_scratch, scratch;
  const int64_t width = padded(n.size), block = QUERIES * width;
  float* dk = sums_scratch.get<float>(2 * n.keys * width);  // (keys, width), all of the sequence
  float* dv = dk + n.keys * width;
  std::fill_n(dk, 2 * n.keys * width, 0.0f);
  float* q_turned = scratch.get<float>(7 * block + 2 * KEYS * QUERIES + 2 * QUERIES);
  float *grad_turned = q_turned + block, *dq = grad_turned + block;  // (size, 64)
  float *q_rows = dq + block, *grad_rows = q_rows + block;           // (64, width)
  float *k_rows = grad_rows + block, *v_rows = k_rows + block;
  float *scores = v_rows + block, *grads = scores + KEYS * QUERIES;  // (64 keys, 64 queries)
  float *logs = grads + KEYS * QUERIES, *delta = logs + QUERIES;

  const auto k_head = head_of<float>(x.k, sample, group),
             v_head = head_of<float>(x.v, sample, group);
  const int64_t heads = n.heads / n.groups;
  for (int64_t h = group * heads; h < (group + 1) * heads; h++) {
    const auto q_head = head_of<float>(x.q, sample, h),
               grad_head = head_of<float>(x.grad, sample, h);
    const auto out_head = head_of<float>(x.out, sample, h);
    for (int64_t i = 0; i < n.queries; i += QUERIES) {
      const int64_t queries = std::min(QUERIES, n.queries - i);
      turn_rows(q_head.row(i), q_head.stride, queries, n.size, q_turned);
      turn_rows(grad_head.row(i), grad_head.stride, queries, n.size, grad_turned);
      copy_rows(q_head.row(i), q_head.stride, queries, n.size, q_rows);
      copy_rows(grad_head.row(i), grad_head.stride, queries, n.size, grad_rows);
      std::fill_n(logs, QUERIES, math::INF);  // lanes past the last query: probability 0
      std::fill_n(delta, QUERIES, 0.0f);
      std::copy_n(x.log_sum.as<float>() + (sample * n.heads + h) * n.queries + i, queries, logs);
      dot_rows(grad_head.row(i), grad_head.stride, out_head.row(i), out_head.stride, queries,
               n.size, delta);
      std::fill_n(dq, n.size * QUERIES, 0.0f);
      const int64_t visible = n.visible(i);
      for (int64_t j = 0; j < visible; j += KEYS) {
        const Pairing pair(n, i, queries, j, std::min(KEYS, visible - j), 16);
        copy_rows(k_head.row(j), k_head.stride, pair.keys, n.size, k_rows);
        copy_rows(v_head.row(j), v_head.stride, pair.keys, n.size, v_rows);
        float *dk_rows = dk + j * width, *dv_rows = dv + j * width;
        for (int64_t q0 = 0; q0 < queries; q0 += pair.queries) {
          const int64_t seen = pair.seen(q0), lanes = pair.queries,
                        depth = std::min(lanes, queries - q0);
          if (seen == 0) continue;
          float *p = scores + q0, *ds = grads + q0;
          multiply({k_rows, width, 1, q_turned + q0, QUERIES, p, QUERIES, seen, lanes, n.size,
                    nullptr, false});
          multiply({v_rows, width, 1, grad_turned + q0, QUERIES, ds, QUERIES, seen, lanes, n.size,
                    nullptr, false});
          softmax_backward(p, ds, seen, lanes, x.scale, pair.last_of(q0), logs + q0, delta + q0, p,
                           ds);
          multiply({p, QUERIES, 1, grad_rows + q0 * width, width, dv_rows, width, seen, width,
                    depth, nullptr, true});
          multiply({ds, QUERIES, 1, q_rows + q0 * width, width, dk_rows, width, seen, width, depth,
                    nullptr, true});
          multiply({k_rows, 1, width, ds, QUERIES, dq + q0, QUERIES, n.size, lanes, seen, nullptr,
                    true});
        }
      }
      const auto dq_head = head_of<float>(x.grad_q, sample, h);
      store_turned(dq, queries, n.size, dq_head.row(i), dq_head.stride);
    }
  }
  const auto dk_head = head_of<float>(x.grad_k, sample, group),
             dv_head = head_of<float>(x.grad_v, sample, group);
  store_rows(dk, width, n.keys, n.size, dk_head.data, dk_head.stride);
  store_rows(dv, width, n.keys, n.size, dv_head.data, dv_head.stride);
}

template <class T>
using Products = std::conditional_t<std::is_same_v<T, float>, Chains, Tiles>;

}  // namespace

void attention_forward(const ConstArray& q, const ConstArray& k, const ConstArray& v, bool causal,
                       float scale, const Array& out, const Array& log_sum) {
  const char* call = "attention_forward";
  const Sizes n = sizes_of(call, q, k, v, out, log_sum, causal);
  const int64_t blocks = (n.queries + QUERIES - 1) / QUERIES;
  const int64_t grain = 1 + WORTH_A_THREAD / (std::min(QUERIES, n.queries) * n.keys * n.size + 1);
  PLAIT_FLOATS(q.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    parallel_for(n.samples * n.heads * blocks, grain, [&](int64_t begin, int64_t end) {
      const Products<T> products;
      for (int64_t item = begin; item < end; item++) {
        const int64_t first = item % blocks * QUERIES, row = item / blocks;
        const int64_t sample = row / n.heads, head = row % n.heads,
                      group = head / (n.heads / n.groups);
        products.forward_block(n, head_of<T>(q, sample, head), head_of<T>(k, sample, group),
                               head_of<T>(v, sample, group), scale, first,
                               head_of<T>(out, sample, head),
                               log_sum.as<float>() + row * n.queries + first);
      }
    });
  });
}

void attention_backward(const ConstArray& grad, const ConstArray& q, const ConstArray& k,
                        const ConstArray& v, const ConstArray& out, const ConstArray& log_sum,
                        bool causal, float scale, const Array& grad_q, const Array& grad_k,
                        const Array& grad_v) {
  const char* call = "attention_backward";
  const Sizes n = sizes_of(call, q, k, v, out, log_sum, causal);
  sizes_of(call, grad_q, grad_k, grad_v, grad, log_sum, causal);
  expect_dtype(call, "grad", grad, q.dtype);
  expect_shape(call, "grad", grad, {n.samples, n.queries, n.heads, n.size});
  expect_shape(call, "grad_k", grad_k, {n.samples, n.keys, n.groups, n.size});
  const int64_t grain = 1 + WORTH_A_THREAD / (n.queries * n.keys * n.size + 1);
  const Backward x{grad, q, k, v, out, log_sum, scale, grad_q, grad_k, grad_v};
  PLAIT_FLOATS(q.dtype, call, [&](auto zero) {
    parallel_for(n.samples * n.groups, grain, [&](int64_t begin, int64_t end) {
      const Products<decltype(zero)> products;
      for (int64_t item = begin; item < end; item++)
        products.backward_group(n, x, item / n.groups, item % n.groups);
    });
  });
}

}  // namespace plait
