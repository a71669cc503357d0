// Sizes of an attention call, where its heads lie, and which pairs of blocks meet under the mask.
#pragma once
#include <algorithm>

#include "core/ops.hpp"
#include "cpu/attention_block.hpp"

namespace plait::attention {

struct Sizes {
  int64_t samples, queries, keys, heads, groups, size;
  bool causal;

  // The keys that a block of queries may see: as if the block were full, so that other rows change
  // nothing.
  int64_t visible(int64_t first_query) const {
    if (!causal) return keys;
    return std::clamp<int64_t>(first_query + QUERIES + keys - queries, 0, keys);
  }
};

// Queries and keys of a pair of blocks that meet. Where the causal mask cuts the pair, `few`
// queries at a time meet the keys that the last of them sees; else all queries meet all keys.
struct Pairing {
  int64_t last;  // query 0 sees keys up to this one, counted in their blocks
  int64_t keys;
  int64_t queries;  // at a time; a multiple of `few`

  Pairing(const Sizes& n, int64_t first_query, int64_t query_count, int64_t first_key,
          int64_t key_count, int64_t few)
      : last(n.causal ? first_query + n.keys - n.queries - first_key : key_count), keys(key_count) {
    queries = last < keys - 1 ? few : padded(query_count, few);
  }
  int64_t seen(int64_t query) const { return std::clamp<int64_t>(last + query + queries, 0, keys); }
  float last_of(int64_t query) const { return float(last + query); }
};

// The rows of one head: element (row, i) at data[row * stride + i].
template <class T>
struct Head {
  T* data;
  int64_t stride;
  T* row(int64_t r) const { return data + r * stride; }
};
template <class T>
Head<const T> head_of(const ConstArray& x, int64_t sample, int64_t head) {
  return {x.as<T>() + sample * x.strides[0] + head * x.strides[2], x.strides[1]};
}
template <class T>
Head<T> head_of(const Array& x, int64_t sample, int64_t head) {
  return {x.as<T>() + sample * x.strides[0] + head * x.strides[2], x.strides[1]};
}

// The arrays of a backward call.
struct Backward {
  ConstArray grad, q, k, v, out, log_sum;
  float scale;
  Array grad_q, grad_k, grad_v;
};

}  // namespace plait::attention
