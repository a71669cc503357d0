// A few places of a panel at a time: eight by eight elements, in compiler vectors, one text for
// every instruction path.
#pragma once
#include <type_traits>

#include "cpu/gemm_tile.hpp"
#include "cpu/transpose.hpp"

namespace plait {
namespace {

template <int WIDTH>
PLAIT_INLINE void store(Word8 x, float* out) {
  std::memcpy(out, &x, WIDTH * sizeof(float));
}

template <Packing FORM>
using Form = std::integral_constant<Packing, FORM>;

// Where k = 0, 2, ... lies in a panel of width 1.
template <Packing FORM>
PLAIT_INLINE int64_t place(int64_t k) {
  return FORM == Packing::pairs ? k / 2 : k;
}

// The words of k (low) and k + 1 (high), one for each w.
template <Packing FORM, int WIDTH>
PLAIT_INLINE void store_pair(Word8 pair, int64_t panel, float* out) {
  const Word8 low = pair << 16, high = pair & 0xffff0000u;
  if (FORM == Packing::pairs) {
    store<WIDTH>(pair, out);
  } else {
    store<WIDTH>(FORM == Packing::swapped ? high : low, out);
    store<WIDTH>(FORM == Packing::swapped ? low : high, out + panel);
  }
}

// The same of one place; `both`: k + 1 exists.
template <Packing FORM>
PLAIT_INLINE void store_words(uint32_t low, uint32_t high, bool both, int64_t panel, float* to) {
  const uint32_t pair = low | high << 16, first = low << 16, second = high << 16;
  if (FORM == Packing::pairs) {
    std::memcpy(to, &pair, 4);
  } else {
    std::memcpy(to, FORM == Packing::swapped ? &second : &first, 4);
    if (both || FORM == Packing::swapped)
      std::memcpy(to + panel, FORM == Packing::swapped ? &first : &second, 4);
  }
}

// 8 or 16 k of a panel, from rows of 8 words: a float, or two neighbouring bfloat16.
template <Packing FORM, int WIDTH, bool WHOLE>
PLAIT_INLINE void turn(const float* x, int64_t wide_stride, int valid, int64_t panel, float* out) {
  Word8 r[8] = {};
#pragma GCC unroll 8
  for (int w = 0; w < WIDTH; w++)
    if (WHOLE || w < valid) std::memcpy(&r[w], x + w * wide_stride, 32);
  transpose(r);
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) store<WIDTH>(r[k], out + k * panel);
}
template <Packing FORM, int WIDTH, bool WHOLE>
PLAIT_INLINE void turn(const bfloat16* x, int64_t wide_stride, int valid, int64_t panel,
                       float* out) {
  Word8 r[8] = {};
#pragma GCC unroll 8
  for (int w = 0; w < WIDTH; w++)
    if (WHOLE || w < valid) std::memcpy(&r[w], x + w * wide_stride, 32);
  transpose(r);
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++)
    store_pair<FORM, WIDTH>(r[k], panel, out + place<FORM>(2 * k) * panel);
}

// WIDTH places of a panel, from rows of k that lie along w, row k at at(k): a pair at a time.
template <Packing FORM, int WIDTH, class At>
PLAIT_INLINE void along(const float* x, At at, int64_t depth, int64_t panel, float* out) {
  for (int64_t k = 0; k < depth; k++)
    std::memcpy(out + k * panel, x + at(k), WIDTH * sizeof(float));
}
// Without `both` k is the last one of an odd number.
template <Packing FORM, int PLACES>
PLAIT_INLINE void along_group(const bfloat16* first, const bfloat16* second, bool both,
                              int64_t panel, float* out) {
  const Word8 low = words<PLACES>(first);
  if (both)
    store_pair<FORM, PLACES>(low | words<PLACES>(second) << 16, panel, out);
  else if (FORM == Packing::floats)
    store<PLACES>(low << 16, out);
  else
    store_pair<FORM, PLACES>(low, panel, out);
}
template <Packing FORM, int WIDTH, class At>
PLAIT_INLINE void along(const bfloat16* x, At at, int64_t depth, int64_t panel, float* out) {
  constexpr int REST = WIDTH % 8, WHOLE = WIDTH - REST;
  for (int64_t k = 0; k < depth; k += 2) {
    const bool both = k + 1 < depth;
    const bfloat16 *first = x + at(k), *second = both ? x + at(k + 1) : first;
    float* to = out + place<FORM>(k) * panel;
#pragma GCC unroll 4
    for (int w = 0; w < WHOLE; w += 8)
      along_group<FORM, 8>(first + w, second + w, both, panel, to + w);
    if constexpr (REST != 0)
      along_group<FORM, REST>(first + WHOLE, second + WHOLE, both, panel, to + WHOLE);
  }
}

// The same where fewer than WIDTH places are in x, at most 7: nothing is read that was just stored.
template <Packing FORM, int WIDTH, class At>
PLAIT_INLINE void along_part(const bfloat16* x, At at, int valid, int64_t depth, int64_t panel,
                             float* out) {
  for (int64_t k = 0; k < depth; k += 2) {
    const bool both = k + 1 < depth;
    const bfloat16 *first = x + at(k), *second = both ? x + at(k + 1) : first;
    float* to = out + place<FORM>(k) * panel;
    store<WIDTH>(Word8{}, to);
    if (FORM == Packing::swapped || (FORM == Packing::floats && both))
      store<WIDTH>(Word8{}, to + panel);
    for (int w = 0; w < valid; w++)
      store_words<FORM>(first[w].bits, both ? second[w].bits : 0, both, panel, to + w);
  }
}
template <Packing FORM, int WIDTH, class At>
PLAIT_INLINE void along_part(const float* x, At at, int valid, int64_t depth, int64_t panel,
                             float* out) {
  for (int64_t k = 0; k < depth; k++) {
    const float* from = x + at(k);
    float* to = out + k * panel;
    store<WIDTH>(Word8{}, to);
    if (valid & 4) std::memcpy(to, from, 16), from += 4, to += 4;
    if (valid & 2) std::memcpy(to, from, 8), from += 2, to += 2;
    if (valid & 1) *to = *from;
  }
}

// Any strides, `width` places of which `valid` are in x.
template <Packing FORM>
PLAIT_INLINE void plain(const float* x, int64_t wide_stride, int64_t depth_stride, int valid,
                        int64_t depth, int width, int64_t panel, float* out) {
  for (int64_t k = 0; k < depth; k++)
    for (int w = 0; w < width; w++)
      out[k * panel + w] = w < valid ? x[w * wide_stride + k * depth_stride] : 0.0f;
}
template <Packing FORM>
PLAIT_INLINE void plain(const bfloat16* x, int64_t wide_stride, int64_t depth_stride, int valid,
                        int64_t depth, int width, int64_t panel, float* out) {
  for (int64_t k = 0; k < depth; k += 2)
    for (int w = 0; w < width; w++) {
      const bool both = k + 1 < depth, there = w < valid;
      const bfloat16* from = x + w * wide_stride + k * depth_stride;
      const uint32_t low = there ? from[0].bits : 0,
                     high = there && both ? from[depth_stride].bits : 0;
      store_words<FORM>(low, high, both, panel, out + place<FORM>(k) * panel + w);
    }
}

// Some places of a panel, WIDTH at most 8, of which `valid` are in x.
template <Packing FORM, int WIDTH, class T>
PLAIT_INLINE void pack_group(const T* x, int64_t wide_stride, Even at, int valid, int64_t depth,
                             int64_t panel, float* out) {
  constexpr int64_t AT_ONCE = 32 / sizeof(T);
  if (valid == 0) {
    const int64_t lines = packed_size(FORM, depth);
    for (int64_t k = 0; k < lines; k++) store<WIDTH>(Word8{}, out + k * panel);
  } else if (at.stride == 1) {
    int64_t k = 0;
    if (valid == WIDTH)
      for (; k + AT_ONCE <= depth; k += AT_ONCE) {
        if (k % (2 * AT_ONCE) == 0)  // a line of the same rows of the next panel
          for (int w = 0; w < WIDTH; w++) __builtin_prefetch(x + (w + panel) * wide_stride + k);
        turn<FORM, WIDTH, true>(x + k, wide_stride, valid, panel, out + place<FORM>(k) * panel);
      }
    for (; k + AT_ONCE <= depth; k += AT_ONCE)
      turn<FORM, WIDTH, false>(x + k, wide_stride, valid, panel, out + place<FORM>(k) * panel);
    plain<FORM>(x + k, wide_stride, 1, valid, depth - k, WIDTH, panel,
                out + place<FORM>(k) * panel);
  } else if (wide_stride == 1 && valid == WIDTH) {
    along<FORM, WIDTH>(x, at, depth, panel, out);
  } else if (wide_stride == 1) {
    along_part<FORM, WIDTH>(x, at, valid, depth, panel, out);
  } else {
    plain<FORM>(x, wide_stride, at.stride, valid, depth, WIDTH, panel, out);
  }
}
template <Packing FORM, int WIDTH, class T>
PLAIT_INLINE void pack_group(const T* x, int64_t, Listed at, int valid, int64_t depth,
                             int64_t panel, float* out) {
  if (valid == WIDTH)
    along<FORM, WIDTH>(x, at, depth, panel, out);
  else
    along_part<FORM, WIDTH>(x, at, valid, depth, panel, out);
}

}  // namespace
}  // namespace plait
