// Packs operands of a matrix multiplication into panels that a register tile reads front to back,
// as float32. Eight by eight elements at a time, in compiler vectors: one text for every
// instruction path.
#include <type_traits>

#include "cpu/gemm_tile.hpp"

namespace plait {
namespace {

typedef uint32_t Word8 __attribute__((vector_size(32)));
typedef uint32_t Word4 __attribute__((vector_size(16)));
typedef uint16_t Short8 __attribute__((vector_size(16)));
typedef uint16_t Short4 __attribute__((vector_size(8)));

#if defined(__clang__)
#define PLAIT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PLAIT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Word8{__VA_ARGS__})
#endif

// Rows become columns: pairs, then quadruples, then halves change places.
PLAIT_INLINE void transpose(Word8 (&r)[8]) {
  Word8 t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    t[i] = PLAIT_SHUFFLE(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = PLAIT_SHUFFLE(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = PLAIT_SHUFFLE(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      r[i + 2 * j + 1] = PLAIT_SHUFFLE(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
#pragma GCC unroll 8
  for (int i = 0; i < 4; i++) {
    t[i] = PLAIT_SHUFFLE(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[i + 4] = PLAIT_SHUFFLE(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) r[i] = t[i];
}

template <int WIDTH>
PLAIT_INLINE void store(Word8 x, float* out) {
  std::memcpy(out, &x, WIDTH * sizeof(float));
}

// out[k * panel + w] for 8 or 16 k, from rows of 8 elements (32 bits each: a float, or two
// neighbouring bfloat16).
template <int WIDTH>
PLAIT_INLINE void turn(const float* x, int64_t wide_stride, int valid, int64_t panel, float* out) {
  Word8 r[8] = {};
#pragma GCC unroll 8
  for (int w = 0; w < WIDTH; w++)
    if (w < valid) std::memcpy(&r[w], x + w * wide_stride, 32);
  transpose(r);
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) store<WIDTH>(r[k], out + k * panel);
}
template <int WIDTH>
PLAIT_INLINE void turn(const bfloat16* x, int64_t wide_stride, int valid, int64_t panel,
                       float* out) {
  Word8 r[8] = {};
#pragma GCC unroll 8
  for (int w = 0; w < WIDTH; w++)
    if (w < valid) std::memcpy(&r[w], x + w * wide_stride, 32);
  transpose(r);
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) {
    store<WIDTH>(r[k] << 16, out + 2 * k * panel);
    store<WIDTH>(r[k] & 0xffff0000u, out + (2 * k + 1) * panel);
  }
}

template <int WIDTH>
PLAIT_INLINE void widen(const float* x, float* out) {
  std::memcpy(out, x, WIDTH * sizeof(float));
}
template <int WIDTH>
PLAIT_INLINE void widen(const bfloat16* x, float* out) {
  if constexpr (WIDTH == 8) {
    Short8 s;
    std::memcpy(&s, x, sizeof(s));
    store<8>(__builtin_convertvector(s, Word8) << 16, out);
  } else {
    Short4 s;
    std::memcpy(&s, x, sizeof(s));
    const Word4 wide = __builtin_convertvector(s, Word4) << 16;
    std::memcpy(out, &wide, sizeof(wide));
    for (int w = 4; w < WIDTH; w++) out[w] = to_float(x[w]);
  }
}

template <class T>
PLAIT_INLINE void pack_plain(const T* x, int64_t wide_stride, int64_t depth_stride, int valid,
                             int64_t depth, int width, int64_t panel, float* out) {
  for (int64_t k = 0; k < depth; k++)
    for (int w = 0; w < width; w++)
      out[k * panel + w] = w < valid ? to_float(x[w * wide_stride + k * depth_stride]) : 0.0f;
}

// A column of a panel, WIDTH wide at most 8, of which `valid` are in x.
template <int WIDTH, class T>
PLAIT_INLINE void pack_group(const T* x, int64_t wide_stride, int64_t depth_stride, int valid,
                             int64_t depth, int64_t panel, float* out) {
  constexpr int64_t AT_ONCE = 32 / sizeof(T);
  if (depth_stride == 1 && valid > 0) {
    int64_t k = 0;
    for (; k + AT_ONCE <= depth; k += AT_ONCE)
      turn<WIDTH>(x + k, wide_stride, valid, panel, out + k * panel);
    pack_plain(x + k, wide_stride, 1, valid, depth - k, WIDTH, panel, out + k * panel);
  } else if (wide_stride == 1 && valid == WIDTH) {
    for (int64_t k = 0; k < depth; k++) widen<WIDTH>(x + k * depth_stride, out + k * panel);
  } else {
    pack_plain(x, wide_stride, depth_stride, valid, depth, WIDTH, panel, out);
  }
}

template <class T, int PANEL>
PLAIT_INLINE void pack_body(const T* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
                            int64_t depth, std::integral_constant<int, PANEL>, float* out) {
  // Along the rows of x, a few at a time: whole cache lines are used before they leave.
  const int64_t run = wide_stride == 1 ? 8 : depth;
  for (int64_t first = 0; first < depth; first += run) {
    const int64_t here = depth - first < run ? depth - first : run;
    for (int64_t w = 0; w < wide; w += PANEL) {
      const int width = int(wide - w < PANEL ? wide - w : PANEL);
      const T* from = x + w * wide_stride + first * depth_stride;
      float* to = out + w * depth + first * PANEL;
      for (int g = 0; g + 8 <= PANEL; g += 8) {
        const int valid = width - g < 0 ? 0 : width - g < 8 ? width - g : 8;
        pack_group<8>(from + g * wide_stride, wide_stride, depth_stride, valid, here, PANEL,
                      to + g);
      }
      if constexpr (PANEL % 8 != 0) {
        constexpr int G = PANEL / 8 * 8, REST = PANEL % 8;
        const int valid = width - G < 0 ? 0 : width - G < REST ? width - G : REST;
        pack_group<REST>(from + G * wide_stride, wide_stride, depth_stride, valid, here, PANEL,
                         to + G);
      }
    }
  }
}

PLAIT_KERNEL(pack, pack_body)

template <class T>
void pack_any(const T* x, int64_t wide_stride, int64_t depth_stride, int64_t wide, int64_t depth,
              int panel, float* out) {
  switch (panel) {
    case 4:
      return pack(x, wide_stride, depth_stride, wide, depth, std::integral_constant<int, 4>{}, out);
    case 6:
      return pack(x, wide_stride, depth_stride, wide, depth, std::integral_constant<int, 6>{}, out);
    case 14:
      return pack(x, wide_stride, depth_stride, wide, depth, std::integral_constant<int, 14>{},
                  out);
    case 16:
      return pack(x, wide_stride, depth_stride, wide, depth, std::integral_constant<int, 16>{},
                  out);
    default:
      return pack(x, wide_stride, depth_stride, wide, depth, std::integral_constant<int, 32>{},
                  out);
  }
}

}  // namespace

void pack_panels(const float* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
                 int64_t depth, int panel, float* out) {
  pack_any(x, wide_stride, depth_stride, wide, depth, panel, out);
}

void pack_panels(const bfloat16* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
                 int64_t depth, int panel, float* out) {
  pack_any(x, wide_stride, depth_stride, wide, depth, panel, out);
}

}  // namespace plait
