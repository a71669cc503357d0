// The innermost piece of a matrix multiplication: one tile of out, in registers while k runs.
#pragma once
#include <cstdint>

#include "core/dtype.hpp"
#include "cpu/isa.hpp"

namespace plait {

constexpr int MAX_ROWS = 32;             // of a tile
constexpr int MAX_TILE = MAX_ROWS * 32;  // elements of the largest tile

// What the 4 bytes of a panel's element hold. A term is one float32. Of bfloat16 operands a pair is
// (k, k + 1), which adds the term of k + 1, then that of k; denormal terms and sums count as zero.
// `swapped` are the pairs' terms in that order, as float32: the same bits without the instruction.
// `blocks` are 16 pairs each: of b as pairs, of a with the pairs of a row next to each other.
enum class Packing { floats, swapped, pairs, blocks };

// How many k are added together: a chain that goes on must go on at a multiple of it.
constexpr int64_t unit(Packing packing) {
  return packing == Packing::floats ? 1 : packing == Packing::blocks ? 32 : 2;
}

// Elements of a panel for each w; the last unit is filled up with zeros.
constexpr int64_t packed_size(Packing packing, int64_t k) {
  const int64_t filled = (k + unit(packing) - 1) / unit(packing) * unit(packing);
  return packing == Packing::floats || packing == Packing::swapped ? filled : filled / 2;
}

// A tile that another is added to.
struct Lower {
  const float* at;
  int64_t stride;
};

// t(i, j) = init(i, j) or 0; then the chain over a(i, d) * b[d][j] for ascending d; then `merges`
// times lower + t; stored in out.
struct Tile {
  const float* a;  // packed: (i, d) at i * a_row + d * a_step; blocks have an order of their own
  int64_t a_row, a_step;
  const float* b;     // (depth, tile columns) packed
  int64_t depth;      // elements packed
  const float* init;  // or null
  int64_t init_stride;
  const Lower* lower;
  int merges;
  float* out;
  int64_t out_stride;
};

struct TileKernel {
  Packing packing;
  int rows, columns;
  // the first `rows` rows; of the columns at least the first `columns`
  void (*run)(const Tile& tile, int rows, int columns);
  int64_t pass = 1024;        // elements packed along k at once
  int64_t group = 64 * 1024;  // elements of a that tiles work through: a part of L2
  void (*begin)() = nullptr;  // in a thread, before it runs tiles,
  void (*end)() = nullptr;    // and after
};

const TileKernel& tile_kernel(Isa isa, bool pairs);
// The one with AMX, for bfloat16; null if the path has none.
const TileKernel* amx_kernel(Isa isa);

// Packs x, element (w, k) at x[w * wide_stride + k * depth_stride], in panels of `panel` w each:
// (panels, ..., panel). The last pair is filled up with zeros, the last panel to a multiple of 8 w,
// or not at all: what no tile's result needs. Panels lie panel_stride floats apart. float32 has one
// packing.
template <class T>
void pack_panels(const T* x, int64_t wide_stride, int64_t depth_stride, int64_t wide, int64_t depth,
                 int panel, int64_t panel_stride, Packing packing, float* out);
// The same with element (w, k) at x[places[k] + w].
template <class T>
void pack_panels(const T* x, const int64_t* places, int64_t wide, int64_t depth, int panel,
                 int64_t panel_stride, Packing packing, float* out);

// The same in one panel, which may be wider than `wide`; not in blocks.
template <class T>
void pack_panel(const T* x, const int64_t* places, int64_t wide, int64_t depth, int64_t panel,
                Packing packing, float* out);

// a in `blocks`: (panels, depth / 32, 32 w, 16 pairs).
void pack_rows(const bfloat16* x, int64_t wide_stride, int64_t depth_stride, int64_t wide,
               int64_t depth, int64_t panel_stride, float* out);
void pack_rows(const bfloat16* x, const int64_t* places, int64_t wide, int64_t depth,
               int64_t panel_stride, float* out);

// Where row k is: at even distances, or as listed; skip and from lead to the rows from k on.
struct Even {
  static constexpr bool LISTED = false;
  int64_t stride;
  PLAIT_INLINE int64_t operator()(int64_t k) const { return k * stride; }
  PLAIT_INLINE int64_t skip(int64_t k) const { return k * stride; }
  PLAIT_INLINE Even from(int64_t) const { return *this; }
  PLAIT_INLINE bool dense() const { return stride == 1; }
};
struct Listed {
  static constexpr bool LISTED = true;
  const int64_t* places;
  PLAIT_INLINE int64_t operator()(int64_t k) const { return places[k]; }
  PLAIT_INLINE int64_t skip(int64_t) const { return 0; }
  PLAIT_INLINE Listed from(int64_t k) const { return {places + k}; }
  PLAIT_INLINE bool dense() const { return false; }
};

}  // namespace plait
