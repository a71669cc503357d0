// Tile by tile: each goes through all chunks of the pass while its slots lie in L1; where a chunk
// ends a tree, the tile becomes out.
#include "cpu/gemm_block.hpp"

#include <algorithm>

#include "cpu/gemm_finish.hpp"

namespace plait {
namespace {

// One tile of out at (row, column): where its chains start, wait and end.
struct Place {
  int64_t row, column;
  int rows, columns;
  float* slots;
  int64_t slot_size;
};

void load_edge(const Gemm& g, const Place& p, int slot, int tile_columns, float* local) {
  const float* out = static_cast<const float*>(g.out) + slot * g.slot_stride;
  out += p.row * g.out_stride + p.column;
  for (int y = 0; y < p.rows; y++)
    for (int x = 0; x < tile_columns; x++)
      local[y * tile_columns + x] = x < p.columns ? out[y * g.out_stride + x] : 0.0f;
}

thread_local Scratch edge_memory;

// Takes the tile through the pass; a and b point at its panels.
void run_chunks(const Gemm& g, const TileKernel& kernel, const Pass& pass, const Place& p,
                const Packed& packed, const float* a, const float* b) {
  alignas(64) float local[MAX_TILE];
  const bool whole = p.columns == kernel.columns;
  auto out = [&](int slot) {
    return static_cast<float*>(g.out) + slot * g.slot_stride + p.row * g.out_stride + p.column;
  };
  for (const Chunk& c : pass.chunks) {
    float* edges = whole ? nullptr : edge_memory.get<float>(c.merges * MAX_TILE);
    Lower lower[64];
    for (int m = 0; m < c.merges; m++) {
      const int slot = c.slot - 1 - m;
      if (slot >= c.stored) {
        lower[m] = {p.slots + slot * p.slot_size, kernel.columns};
      } else if (whole) {
        lower[m] = {out(slot), g.out_stride};
      } else {
        load_edge(g, p, slot, kernel.columns, edges + m * MAX_TILE);
        lower[m] = {edges + m * MAX_TILE, kernel.columns};
      }
    }
    Tile t{a + c.begin * packed.step,
           packed.row,
           packed.step,
           b + c.begin * kernel.columns,
           c.end - c.begin,
           nullptr,
           kernel.columns,
           lower,
           c.merges,
           local,
           kernel.columns};
    if (c.init == SLOT) t.init = p.slots + c.slot * p.slot_size;
    if (c.init == OUT && whole) t.init = out(c.slot), t.init_stride = g.out_stride;
    if (c.init == OUT && !whole) load_edge(g, p, c.slot, kernel.columns, local), t.init = local;
    const int target = c.slot - c.merges;
    const bool direct = c.last && whole && !needs_finish(g);
    if (!c.last) t.out = p.slots + target * p.slot_size;
    if (direct) t.out = out(target), t.out_stride = g.out_stride;
    if (!c.last) {
      kernel.run(t, p.rows, p.columns);
      continue;
    }
    const TileRows places(g, target, p.row, p.column, p.rows);
    if (c.init != OUT) prefetch_tile(g, places, p.rows, p.columns);
    kernel.run(t, p.rows, p.columns);
    if (!direct) finish_tile(g, local, kernel.columns, p.column, p.rows, p.columns, places);
  }
}

}  // namespace

void run_block(const Gemm& g, const TileKernel& kernel, const Pass& pass, const Region& r,
               const Slots& slots, const Packed& a, const Packed& b) {
  const int64_t tile_size = int64_t(kernel.rows) * kernel.columns;
  const int64_t tiles_across = (r.columns + kernel.columns - 1) / kernel.columns;
  const int64_t rows_at_once =
      std::max<int64_t>(1, kernel.group / (std::max<int64_t>(pass.depth, 1) * kernel.rows)) *
      kernel.rows;
  for (int64_t first = 0; first < r.rows; first += rows_at_once) {
    const int64_t rows_here = std::min(rows_at_once, r.rows - first);
    const float* right = b.data;
    for (int64_t x = 0, across = 0; x < r.columns; x += kernel.columns, across++) {
      int64_t down = first / kernel.rows;
      const float* left = a.data + down * a.panel;
      for (int64_t y = 0; y < rows_here; y += kernel.rows, down++, left += a.panel) {
        const int64_t tile = down * tiles_across + across;
        const Place p{r.row + first + y,
                      r.column + x,
                      int(std::min<int64_t>(kernel.rows, rows_here - y)),
                      int(std::min<int64_t>(kernel.columns, r.columns - x)),
                      slots.data + (slots.tiles > 1 ? tile * tile_size : 0),
                      slots.tiles * tile_size};
        run_chunks(g, kernel, pass, p, a, left, right);
      }
      right += b.panel;
    }
  }
}

}  // namespace plait
