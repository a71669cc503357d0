// Attention on bfloat16, as in attention.cpp but for its products: operands are packed into panels
// and multiplied by the register tiles of the matrix multiplication, so a chain has its order and
// its bits. Probabilities, and in backward the gradients of scores, are rounded to bfloat16 for
// their products; sums of probabilities are of the float32 ones.
#include "cpu/attention_pairs.hpp"

#include "cpu/math.hpp"
#include "cpu/scratch.hpp"

namespace plait::attention {
namespace {

constexpr int64_t FEW = 32;  // columns at a time: of the widest tile

const TileKernel& active_kernel() {
  const TileKernel* amx = amx_kernel(active_isa());
  return amx ? *amx : tile_kernel(active_isa(), true);
}

}  // namespace

Tiles::Tiles() : kernel_(active_kernel()) {
  if (kernel_.begin) kernel_.begin();
}
Tiles::~Tiles() {
  if (kernel_.end) kernel_.end();
}

int64_t Tiles::left_size(int64_t rows, int64_t depth) const {
  return padded(rows, kernel_.rows) * packed_size(kernel_.packing, depth);
}
int64_t Tiles::right_size(int64_t columns, int64_t depth) const {
  return padded(columns, FEW) * packed_size(kernel_.packing, depth);
}

Tiles::Panels Tiles::left(const bfloat16* x, int64_t wide_stride, int64_t depth_stride,
                          int64_t wide, int64_t depth, float* out) const {
  const int64_t stride = kernel_.rows * packed_size(kernel_.packing, depth);
  if (kernel_.packing == Packing::blocks)
    pack_rows(x, wide_stride, depth_stride, wide, depth, stride, out);
  else
    pack_panels(x, wide_stride, depth_stride, wide, depth, kernel_.rows, stride, kernel_.packing,
                out);
  return {out, stride};
}

Tiles::Panels Tiles::right(const bfloat16* x, int64_t wide_stride, int64_t depth_stride,
                           int64_t wide, int64_t depth, float* out) const {
  const int64_t stride = kernel_.columns * packed_size(kernel_.packing, depth);
  pack_panels(x, wide_stride, depth_stride, wide, depth, kernel_.columns, stride, kernel_.packing,
              out);
  float* end = out + padded(wide, kernel_.columns) / kernel_.columns * stride;
  std::fill(end, out + padded(wide, FEW) / kernel_.columns * stride, 0.0f);
  return {out, stride};
}

Tiles::Panels Tiles::from(Panels b, int64_t w, int64_t depth) const {
  const int64_t skipped = packed_size(kernel_.packing, depth) * kernel_.columns;
  return {b.at + w / kernel_.columns * b.stride + skipped, b.stride};
}

void Tiles::multiply(Panels a, Panels b, int64_t rows, int64_t columns, int64_t depth,
                     bool accumulate, float* c, int64_t c_row) const {
  depth = packed_size(kernel_.packing, depth);
  for (int64_t j = 0; j < columns; j += kernel_.columns) {
    const float* right = b.at + j / kernel_.columns * b.stride;
    for (int64_t i = 0; i < rows; i += kernel_.rows) {
      float* out = c + i * c_row + j;
      const Tile tile{a.at + i / kernel_.rows * a.stride, 1, kernel_.rows, right, depth,
                      accumulate ? out : nullptr, c_row, nullptr, 0, out, c_row};
      kernel_.run(tile, int(std::min<int64_t>(kernel_.rows, rows - i)),
                  int(std::min<int64_t>(kernel_.columns, columns - j)));
    }
  }
}

void Tiles::forward_block(const Sizes& n, Head<const bfloat16> q, Head<const bfloat16> k,
                          Head<const bfloat16> v, float scale, int64_t first_query,
                          Head<bfloat16> out, float* log_sum) const {
  thread_local Scratch scratch;
  const int64_t count = std::min(QUERIES, n.queries - first_query);
  const int64_t k_size = left_size(KEYS, n.size), v_size = left_size(n.size, KEYS),
                q_size = right_size(QUERIES, n.size), p_size = right_size(QUERIES, KEYS);
  float* o = scratch.get<float>(n.size * QUERIES + KEYS * QUERIES * 3 / 2 + 3 * QUERIES + k_size +
                                v_size + q_size + p_size);  // (size, 64)
  float* scores = o + n.size * QUERIES;
  float *peak = scores + KEYS * QUERIES, *sum = peak + QUERIES, *factor = sum + QUERIES;
  float *k_at = factor + QUERIES, *v_at = k_at + k_size, *q_at = v_at + v_size;
  float* p_at = q_at + q_size;
  bfloat16* p = reinterpret_cast<bfloat16*>(p_at + p_size);  // (64 keys, 64 queries)
  std::fill_n(o, n.size * QUERIES, 0.0f);
  std::fill_n(peak, QUERIES, -math::INF);
  std::fill_n(sum, QUERIES, 0.0f);
  const Panels queries = right(q.row(first_query), q.stride, 1, count, n.size, q_at);
  const int64_t visible = n.visible(first_query);
  for (int64_t j = 0; j < visible; j += KEYS) {
    const Pairing pair(n, first_query, count, j, std::min(KEYS, visible - j), FEW);
    const Panels keys = left(k.row(j), k.stride, 1, pair.keys, n.size, k_at);
    const Panels values = left(v.row(j), 1, v.stride, n.size, pair.keys, v_at);
    for (int64_t i = 0; i < count; i += pair.queries) {
      const int64_t seen = pair.seen(i), lanes = pair.queries;
      if (seen == 0) continue;
      multiply(keys, from(queries, i, 0), seen, lanes, n.size, false, scores + i, QUERIES);
      softmax_step(scores + i, seen, lanes, scale, pair.last_of(i), peak + i, sum + i, factor + i,
                   p + i);
      if (j > 0) scale_columns(o + i, n.size, lanes, factor + i);
      const Panels weights = right(p + i, 1, QUERIES, lanes, seen, p_at);
      multiply(values, weights, n.size, lanes, seen, j > 0, o + i, QUERIES);
    }
  }
  softmax_end(o, n.size, peak, sum, factor);
  std::copy_n(factor, count, log_sum);
  store_turned(o, count, n.size, out.row(first_query), out.stride);
}

void Tiles::backward_group(const Sizes& n, const Backward& x, int64_t sample, int64_t group) const {
  thread_local Scratch sums_scratch, scratch;
  const int64_t width = padded(n.size, FEW);
  float* dk = sums_scratch.get<float>(2 * n.keys * width);  // (keys, width), all of the sequence
  float* dv = dk + n.keys * width;
  std::fill_n(dk, 2 * n.keys * width, 0.0f);

  const int64_t deep = right_size(QUERIES, n.size), wide = right_size(n.size, QUERIES),
                rows = left_size(KEYS, n.size), turned = left_size(n.size, KEYS),
                square = KEYS * QUERIES, p_left = left_size(KEYS, QUERIES),
                p_right = right_size(QUERIES, KEYS);
  float* at = scratch.get<float>(n.size * QUERIES + 3 * square + 2 * QUERIES + 2 * deep + 2 * wide +
                                 2 * rows + turned + p_left + p_right);
  auto take = [&](int64_t size) { return (at += size) - size; };
  float *dq = take(n.size * QUERIES), *scores = take(square), *grads = take(square);
  float *logs = take(QUERIES), *delta = take(QUERIES);
  float *q_at = take(deep), *g_at = take(deep), *q_wide_at = take(wide), *g_wide_at = take(wide);
  float *k_at = take(rows), *v_at = take(rows), *k_turned_at = take(turned);
  float *left_at = take(p_left), *right_at = take(p_right);
  bfloat16* p = reinterpret_cast<bfloat16*>(take(square / 2));  // (64 keys, 64 queries)
  bfloat16* ds = reinterpret_cast<bfloat16*>(take(square / 2));

  const auto k = head_of<bfloat16>(x.k, sample, group), v = head_of<bfloat16>(x.v, sample, group);
  const int64_t heads = n.heads / n.groups;
  for (int64_t h = group * heads; h < (group + 1) * heads; h++) {
    const auto q = head_of<bfloat16>(x.q, sample, h), g = head_of<bfloat16>(x.grad, sample, h);
    const auto out = head_of<bfloat16>(x.out, sample, h);
    for (int64_t i = 0; i < n.queries; i += QUERIES) {
      const int64_t count = std::min(QUERIES, n.queries - i);
      const Panels q_deep = right(q.row(i), q.stride, 1, count, n.size, q_at),
                   g_deep = right(g.row(i), g.stride, 1, count, n.size, g_at),
                   q_wide = right(q.row(i), 1, q.stride, n.size, count, q_wide_at),
                   g_wide = right(g.row(i), 1, g.stride, n.size, count, g_wide_at);
      std::fill_n(logs, QUERIES, math::INF);  // lanes past the last query: probability 0
      std::fill_n(delta, QUERIES, 0.0f);
      std::copy_n(x.log_sum.as<float>() + (sample * n.heads + h) * n.queries + i, count, logs);
      dot_rows(g.row(i), g.stride, out.row(i), out.stride, count, n.size, delta);
      std::fill_n(dq, n.size * QUERIES, 0.0f);
      const int64_t visible = n.visible(i);
      for (int64_t j = 0; j < visible; j += KEYS) {
        const Pairing pair(n, i, count, j, std::min(KEYS, visible - j), FEW);
        const Panels keys = left(k.row(j), k.stride, 1, pair.keys, n.size, k_at),
                     values = left(v.row(j), v.stride, 1, pair.keys, n.size, v_at),
                     keys_turned = left(k.row(j), 1, k.stride, n.size, pair.keys, k_turned_at);
        for (int64_t q0 = 0; q0 < count; q0 += pair.queries) {
          const int64_t seen = pair.seen(q0), lanes = pair.queries,
                        depth = std::min(lanes, count - q0);
          if (seen == 0) continue;
          multiply(keys, from(q_deep, q0, 0), seen, lanes, n.size, false, scores, QUERIES);
          multiply(values, from(g_deep, q0, 0), seen, lanes, n.size, false, grads, QUERIES);
          softmax_backward(scores, grads, seen, lanes, x.scale, pair.last_of(q0), logs + q0,
                           delta + q0, p, ds);
          Panels weights = left(p, QUERIES, 1, seen, depth, left_at);
          multiply(weights, from(g_wide, 0, q0), seen, width, depth, true, dv + j * width, width);
          weights = left(ds, QUERIES, 1, seen, depth, left_at);
          multiply(weights, from(q_wide, 0, q0), seen, width, depth, true, dk + j * width, width);
          weights = right(ds, 1, QUERIES, lanes, seen, right_at);
          multiply(keys_turned, weights, n.size, lanes, seen, true, dq + q0, QUERIES);
        }
      }
      const auto grad_q = head_of<bfloat16>(x.grad_q, sample, h);
      store_turned(dq, count, n.size, grad_q.row(i), grad_q.stride);
    }
  }
  const auto grad_k = head_of<bfloat16>(x.grad_k, sample, group),
             grad_v = head_of<bfloat16>(x.grad_v, sample, group);
  store_rows(dk, width, n.keys, n.size, grad_k.data, grad_k.stride);
  store_rows(dv, width, n.keys, n.size, grad_v.data, grad_v.stride);
}

}  // namespace plait::attention
