// What the kernels of attention know of a call: sizes, where the rows of heads lie, which keys a query sees.
#pragma once
#include <cstdint>

#include "core/array.hpp"
#include "core/inline.hpp"

namespace plait {

struct AttentionSizes {
  int64_t samples, queries, keys, heads, groups;
  int size;  // of a head
  bool causal;
  float scale;

  PLAIT_HOST_DEVICE int64_t offset() const { return keys - queries; }  // query i sees keys up to i + offset()
  // Keys that some of `count` queries from `first` on may see: as if all of those were there, so that others change nothing.
  PLAIT_HOST_DEVICE int64_t visible(int64_t first, int64_t count) const {
    if (!causal) return keys;
    const int64_t end = first + count + offset();
    return end < 0 ? 0 : end < keys ? end : keys;
  }
  PLAIT_HOST_DEVICE int64_t heads_of_group() const { return heads / groups; }
};

// Element (sample, row, head, i) lies at sample * sample_stride + row * row_stride + head * head_stride + i.
template <class T>
struct Rows4 {
  T* data;
  int64_t sample_stride, row_stride, head_stride;

  PLAIT_HOST_DEVICE T* head(int64_t sample, int64_t head) const { return data + sample * sample_stride + head * head_stride; }
};
template <class T>
Rows4<const T> rows4(const ConstArray& x) {
  return {static_cast<const T*>(x.data), x.strides[0], x.strides[1], x.strides[2]};
}
template <class T>
Rows4<T> rows4(const Array& x) {
  return {static_cast<T*>(const_cast<void*>(x.data)), x.strides[0], x.strides[1], x.strides[2]};
}

// Arguments of a call, checked.
struct AttentionArrays {
  ConstArray q, k, v, out, log_sum, grad;  // grad: of a backward call
  Array grad_q, grad_k, grad_v;
};

constexpr int LARGEST_TILED_HEAD = 128;  // of the kernels on tensor cores; larger heads and float32 take the plain ones

// bfloat16 heads of at most LARGEST_TILED_HEAD.
void attention_forward_tiles(const AttentionSizes& n, const AttentionArrays& x, const Array& out, const Array& log_sum);
void attention_backward_tiles(const AttentionSizes& n, const AttentionArrays& x);
// Any.
void attention_forward_plain(const AttentionSizes& n, const AttentionArrays& x, const Array& out, const Array& log_sum);
void attention_backward_plain(const AttentionSizes& n, const AttentionArrays& x);

}  // namespace plait
