// Packs operands of a matrix multiplication into panels that a register tile reads front to back,
// as float32 or in pairs of bfloat16.
#include <algorithm>

#include "cpu/gemm_pack_group.hpp"

namespace plait {
namespace {

// Asks for what the next 16 rows of x have for this panel: their lines lie too far apart for the
// processor to guess.
template <int PANEL, class T, class At>
PLAIT_INLINE void fetch_rows(const T* x, At at, int64_t k, int64_t depth) {
  const int64_t end = depth < k + 16 ? depth : k + 16;
  for (; k < end; k++)
    for (int64_t w = 0; w < PANEL; w += 64 / int64_t(sizeof(T))) __builtin_prefetch(x + at(k) + w);
}

template <class T, class At, int PANEL, Packing FORM>
PLAIT_INLINE void pack_body(const T* x, int64_t wide_stride, At at, int64_t wide, int64_t depth,
                            std::integral_constant<int, PANEL>, int64_t panel_stride, Form<FORM>,
                            float* out) {
  // Along the rows of x, a few at a time: whole cache lines are used before they leave.
  constexpr int64_t FAR = 64;  // pixels of fewer channels lie near each other
  const int64_t run = wide_stride == 1 ? 16 : depth;
  for (int64_t first = 0; first < depth; first += run) {
    const int64_t here = depth - first < run ? depth - first : run;
    for (int64_t w = 0; w < wide; w += PANEL) {
      const int width = int(wide - w < PANEL ? wide - w : PANEL);
      const T* from = x + w * wide_stride;
      if (wide_stride == 1 && (!At::LISTED || wide >= FAR))
        fetch_rows<PANEL>(from, at, first + here, depth);
      float* to = out + w / PANEL * panel_stride + place<FORM>(first) * PANEL;
      if (wide_stride == 1 && width == PANEL && !at.dense()) {
        along<FORM, PANEL>(from + at.skip(first), at.from(first), here, PANEL, to);
        continue;
      }
      for (int g = 0; g + 8 <= PANEL; g += 8) {
        if (At::LISTED && width <= g) break;
        const int valid = width - g < 0 ? 0 : width - g < 8 ? width - g : 8;
        pack_group<FORM, 8>(from + at.skip(first) + g * wide_stride, wide_stride, at.from(first),
                            valid, here, PANEL, to + g);
      }
      if constexpr (PANEL % 8 != 0) {
        constexpr int G = PANEL / 8 * 8, REST = PANEL % 8;
        const int valid = width - G < 0 ? 0 : width - G < REST ? width - G : REST;
        if (!At::LISTED || valid > 0)
          pack_group<FORM, REST>(from + at.skip(first) + G * wide_stride, wide_stride,
                                 at.from(first), valid, here, PANEL, to + G);
      }
    }
  }
}

// Whether a tile of the path has panels of this width in this form. The emulated AMX has its own on
// every path.
constexpr bool packed(Isa path, int panel, Packing form) {
  if (form == Packing::pairs && panel == 32) return true;
  if (path == Isa::avx512) return panel == 14 || panel == 32;
  return form != Packing::pairs && (panel == 16 || panel == (path == Isa::avx2 ? 6 : 4));
}
template <Isa, class...>
constexpr bool pack_called = false;
template <Isa PATH, class T, class At, int PANEL, Packing FORM>
constexpr bool pack_called<PATH, const T*, int64_t, At, int64_t, int64_t,
                           std::integral_constant<int, PANEL>, int64_t, Form<FORM>, float*> =
    packed(PATH, PANEL, FORM);

PLAIT_KERNEL_WHERE(pack, pack_body, pack_called)

// One panel of any width, of rows that lie along w.
template <class T, class At, Packing FORM>
PLAIT_INLINE void pack_line_body(const T* x, At at, int64_t wide, int64_t depth, int64_t panel,
                                 Form<FORM>, float* out) {
  for (int64_t first = 0; first < depth; first += 16) {
    const int64_t here = depth - first < 16 ? depth - first : 16;
    for (int64_t w = 0; w < wide; w += 8)
      pack_group<FORM, 8>(x + at.skip(first) + w, 1, at.from(first),
                          int(wide - w < 8 ? wide - w : 8), here, panel,
                          out + place<FORM>(first) * panel + w);
  }
}
PLAIT_KERNEL(pack_line, pack_line_body)

template <class T, class At, class Form>
void pack_any(const T* x, int64_t wide_stride, At at, int64_t wide, int64_t depth, int panel,
              int64_t panel_stride, Form form, float* out) {
  auto with = [&](auto width) {
    pack(x, wide_stride, at, wide, depth, width, panel_stride, form, out);
  };
  switch (panel) {
    case 4:
      return with(std::integral_constant<int, 4>{});
    case 6:
      return with(std::integral_constant<int, 6>{});
    case 14:
      return with(std::integral_constant<int, 14>{});
    case 16:
      return with(std::integral_constant<int, 16>{});
    default:
      return with(std::integral_constant<int, 32>{});
  }
}

template <class At>
void pack_as(const float* x, int64_t wide_stride, At at, int64_t wide, int64_t depth, int panel,
             int64_t panel_stride, Packing, float* out) {
  pack_any(x, wide_stride, at, wide, depth, panel, panel_stride, Form<Packing::floats>{}, out);
}

template <class At>
void pack_as(const bfloat16* x, int64_t wide_stride, At at, int64_t wide, int64_t depth, int panel,
             int64_t panel_stride, Packing packing, float* out) {
  auto in = [&](auto form) {
    pack_any(x, wide_stride, at, wide, depth, panel, panel_stride, form, out);
  };
  if (packing == Packing::floats) return in(Form<Packing::floats>{});
  if (packing == Packing::swapped) return in(Form<Packing::swapped>{});
  in(Form<Packing::pairs>{});
  const int64_t end = packed_size(Packing::pairs, depth), rest = packed_size(packing, depth) - end;
  for (int64_t w = 0; rest > 0 && w < wide; w += panel, out += panel_stride)
    std::fill_n(out + end * panel, rest * panel, 0.0f);
}

}  // namespace

template <class T>
void pack_panels(const T* x, int64_t wide_stride, int64_t depth_stride, int64_t wide, int64_t depth,
                 int panel, int64_t panel_stride, Packing packing, float* out) {
  pack_as(x, wide_stride, Even{depth_stride}, wide, depth, panel, panel_stride, packing, out);
}
template <class T>
void pack_panels(const T* x, const int64_t* places, int64_t wide, int64_t depth, int panel,
                 int64_t panel_stride, Packing packing, float* out) {
  pack_as(x, 1, Listed{places}, wide, depth, panel, panel_stride, packing, out);
}

template <class T>
void pack_panel(const T* x, const int64_t* places, int64_t wide, int64_t depth, int64_t panel,
                Packing packing, float* out) {
  const Listed at{places};
  if (packing == Packing::pairs)
    pack_line(x, at, wide, depth, panel, Form<Packing::pairs>{}, out);
  else if (packing == Packing::swapped)
    pack_line(x, at, wide, depth, panel, Form<Packing::swapped>{}, out);
  else
    pack_line(x, at, wide, depth, panel, Form<Packing::floats>{}, out);
}

#define PLAIT_PACKS(T)                                                                           \
  template void pack_panels(const T*, int64_t, int64_t, int64_t, int64_t, int, int64_t, Packing, \
                            float*);                                                             \
  template void pack_panels(const T*, const int64_t*, int64_t, int64_t, int, int64_t, Packing,   \
                            float*);                                                             \
  template void pack_panel(const T*, const int64_t*, int64_t, int64_t, int64_t, Packing, float*);
PLAIT_PACKS(float)
PLAIT_PACKS(bfloat16)

}  // namespace plait
