// Packs operands of a matrix multiplication into panels that a register tile reads front to back, as float32.
#include "cpu/gemm_tile.hpp"

namespace plait {
namespace {

template <class T>
PLAIT_INLINE void pack_body(const T* x, int64_t wide_stride, int64_t depth_stride, int64_t wide, int64_t depth,
                            int panel, float* out) {
  for (int64_t w = 0; w < wide; w += panel) {
    const int width = int(wide - w < panel ? wide - w : panel);
    const T* from = x + w * wide_stride;
    if (width < panel)
      for (int64_t k = 0; k < depth; k++)
        for (int i = width; i < panel; i++) out[k * panel + i] = 0.0f;
    if (wide_stride == 1) {
      for (int64_t k = 0; k < depth; k++)
        for (int i = 0; i < width; i++) out[k * panel + i] = to_float(from[k * depth_stride + i]);
    } else {
      for (int i = 0; i < width; i++)
        for (int64_t k = 0; k < depth; k++) out[k * panel + i] = to_float(from[i * wide_stride + k * depth_stride]);
    }
    out += depth * panel;
  }
}

PLAIT_KERNEL(pack, pack_body)

}  // namespace

void pack_panels(const float* x, int64_t wide_stride, int64_t depth_stride, int64_t wide, int64_t depth,
                 int panel, float* out) {
  pack(x, wide_stride, depth_stride, wide, depth, panel, out);
}

void pack_panels(const bfloat16* x, int64_t wide_stride, int64_t depth_stride, int64_t wide, int64_t depth,
                 int panel, float* out) {
  pack(x, wide_stride, depth_stride, wide, depth, panel, out);
}

}  // namespace plait
