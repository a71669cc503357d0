// The shapes of pooling, and what it asks of its arguments.
#pragma once
#include "core/array.hpp"
#include "core/inline.hpp"

namespace plait {

struct PoolShape {
  int64_t batch, height, width, channels, out_height, out_width, size, stride, padding;

  // The first window that covers place p: window o does if o * stride <= p + padding < o * stride + size.
  PLAIT_INLINE int64_t first_window(int64_t p) const {
    return p + padding < size ? 0 : (p + padding - size) / stride + 1;
  }
};

// `value` wins over `best` if it is greater, or is the first NaN: a NaN in a window shows in the output.
PLAIT_INLINE bool wins(float value, float best) { return value > best || (value != value && best == best); }

inline PoolShape pool_shape(const char* call, const ConstArray& x, const ConstArray& out, const ConstArray& index,
                            int64_t size, int64_t stride, int64_t padding) {
  PLAIT_CHECK(x.ndim == 4 && out.ndim == 4 && x.contiguous() && out.contiguous() && x.dtype == out.dtype, call,
              "needs contiguous (B, H, W, C) arrays of one type, got ", shape_text(x), " and ",
              shape_text(out));
  constexpr int64_t most = 1 << 15;  // places in a window are int32
  PLAIT_CHECK(size >= 1 && stride >= 1 && padding >= 0 && padding < size && size <= most && stride <= most, call,
              "size ", size, ", stride ", stride, ", padding ", padding,
              ": size and stride are at least 1 and at most ", most, ", padding is below size");
  const int64_t h = x.shape[1], w = x.shape[2];
  PLAIT_CHECK(h >= 1 && w >= 1 && h + 2 * padding >= size && w + 2 * padding >= size, call, "window ", size,
              " is larger than the image ", shape_text(x), " with padding ", padding);
  const PoolShape s{x.shape[0], h, w, x.shape[3], (h + 2 * padding - size) / stride + 1,
                    (w + 2 * padding - size) / stride + 1, size, stride, padding};
  PLAIT_CHECK(out.shape[0] == s.batch && out.shape[1] == s.out_height && out.shape[2] == s.out_width &&
                  out.shape[3] == s.channels,
              call, "output side is ", shape_text(out), ", expected (", s.batch, ", ", s.out_height, ", ",
              s.out_width, ", ", s.channels, ")");
  bool same = index.ndim == 4 && index.contiguous() && index.dtype == DType::int32;
  for (int i = 0; same && i < 4; i++) same = index.shape[i] == out.shape[i];
  PLAIT_CHECK(same, call, "index is ", shape_text(index), ", expected int32 shaped as ", shape_text(out));
  return s;
}

inline void check_mean_pool(const char* call, const ConstArray& x, const ConstArray& out) {
  PLAIT_CHECK(x.ndim == 3 && out.ndim == 2 && x.shape[0] == out.shape[0] && x.shape[2] == out.shape[1] &&
                  x.dtype == out.dtype && x.contiguous() && out.contiguous(),
              call, "needs contiguous (B, S, C) and (B, C) of one type, got ", shape_text(x), " and ",
              shape_text(out));
  PLAIT_CHECK(x.shape[1] >= 1, call, "mean of no positions, x is ", shape_text(x));
}

}  // namespace plait
