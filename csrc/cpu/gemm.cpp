// Blocking: k runs in passes that the caches hold. A pass of a block of out has both operands
// packed, and every tile goes through all of its leaves while their open tree nodes, the slots, lie
// in L1.
#include "cpu/gemm.hpp"

#include <algorithm>

#include "cpu/gemm_plan.hpp"
#include "cpu/gemm_tile.hpp"
#include "cpu/scratch.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t PACKED_A = 1024 * 1024;  // of a packed at once: a part of L3
constexpr int64_t BLOCK_COLUMNS = 1024;    // of out; b is packed this wide
constexpr int64_t BLOCK_ROWS = 1024;       // all slots together; between passes they wait in scratch
constexpr int64_t LEAST_ROWS = 256;
constexpr double WORTH_A_THREAD = 1 << 20;  // multiply-adds

thread_local Scratch packed_a, packed_b, slot_memory;

// What the pass needs of `wide` rows or columns from `first` on.
const float* pack(const Operand& x, bool columns, const Pass& pass, int64_t first, int64_t wide,
                  const TileKernel& kernel, Scratch& scratch) {
  const int64_t wide_stride = columns ? x.column_stride : x.row_stride;
  const int64_t depth_stride = columns ? x.row_stride : x.column_stride;
  const int panel = columns ? kernel.columns : kernel.rows;
  float* out = scratch.get<float>(pass.depth * ((wide + panel - 1) / panel) * panel);
  for (const Run& run : pass.runs) {
    const int64_t offset = first * wide_stride + run.k * depth_stride;
    float* to = out + run.at * panel;
    auto from = [&](const auto* data) {
      pack_panels(data + offset, wide_stride, depth_stride, wide, run.length, panel,
                  pass.depth * panel, kernel.packing, to);
    };
    if (x.dtype == DType::float32)
      from(static_cast<const float*>(x.data));
    else if (kernel.packing == Packing::blocks && !columns)
      pack_rows(static_cast<const bfloat16*>(x.data) + offset, wide_stride, depth_stride, wide,
                run.length, pass.depth * panel, to);
    else
      from(static_cast<const bfloat16*>(x.data));
  }
  return out;
}

template <class B, class T>
PLAIT_INLINE void finish_body(const float* tile, int64_t stride, int rows, int columns,
                              const B* bias, T* out, int64_t out_stride) {
  for (int i = 0; i < rows; i++) {
    if (bias)
      for (int j = 0; j < columns; j++)
        out[i * out_stride + j] = from_float<T>(tile[i * stride + j] + to_float(bias[j]));
    else
      for (int j = 0; j < columns; j++)
        out[i * out_stride + j] = from_float<T>(tile[i * stride + j]);
  }
}

PLAIT_KERNEL(finish, finish_body)

// Bias and the one rounding: float32 tile to out at (row, column).
void finish_tile(const Gemm& g, const float* tile, int64_t stride, int slot, int64_t row,
                 int64_t column, int rows, int columns) {
  const int64_t offset = slot * g.slot_stride + row * g.out_stride + column;
  auto to = [&](auto* out) {
    if (g.bias_dtype == DType::bfloat16)
      finish(tile, stride, rows, columns,
             g.bias ? static_cast<const bfloat16*>(g.bias) + column : nullptr, out, g.out_stride);
    else
      finish(tile, stride, rows, columns,
             g.bias ? static_cast<const float*>(g.bias) + column : nullptr, out, g.out_stride);
  };
  if (g.out_dtype == DType::float32)
    to(static_cast<float*>(g.out) + offset);
  else
    to(static_cast<bfloat16*>(g.out) + offset);
}

struct Region {
  int64_t row, column, rows, columns;
};

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
                const float* a, const float* b) {
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
    Tile t{a + c.begin * kernel.rows,
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
    const bool direct = c.last && whole && g.out_dtype == DType::float32 && !g.bias;
    if (!c.last) t.out = p.slots + target * p.slot_size;
    if (direct) t.out = out(target), t.out_stride = g.out_stride;
    kernel.run(t, p.rows);
    if (c.last && !direct)
      finish_tile(g, local, kernel.columns, target, p.row, p.column, p.rows, p.columns);
  }
}


// Where tiles wait between passes; in a single pass all share the slots of one tile.
struct Slots {
  float* data;
  int64_t tiles;
};

// A block of out through one pass, rows in groups whose a lies in L2.
void run_block(const Gemm& g, const TileKernel& kernel, const Pass& pass, const Region& r,
               const Slots& slots, const float* a, const float* b) {
  const int64_t tile_size = int64_t(kernel.rows) * kernel.columns;
  const int64_t tiles_across = (r.columns + kernel.columns - 1) / kernel.columns;
  const int64_t rows_at_once =
      std::max<int64_t>(1, kernel.group / (std::max<int64_t>(pass.depth, 1) * kernel.rows)) * kernel.rows;
  for (int64_t first = 0; first < r.rows; first += rows_at_once) {
    const int64_t rows_here = std::min(rows_at_once, r.rows - first);
    const float* group = a + first * pass.depth;
    for (int64_t x = 0; x < r.columns; x += kernel.columns)
      for (int64_t y = 0; y < rows_here; y += kernel.rows) {
        const int64_t tile = (first + y) / kernel.rows * tiles_across + x / kernel.columns;
        const Place p{r.row + first + y,
                      r.column + x,
                      int(std::min<int64_t>(kernel.rows, rows_here - y)),
                      int(std::min<int64_t>(kernel.columns, r.columns - x)),
                      slots.data + (slots.tiles > 1 ? tile * tile_size : 0),
                      slots.tiles * tile_size};
        run_chunks(g, kernel, pass, p, group + y * pass.depth, b + x * pass.depth);
      }
  }
}

// Even cuts of a length in multiples of a tile side.
int64_t cut(int64_t length, int64_t tile, int64_t i, int64_t n) {
  return std::min(length, (length + tile - 1) / tile * i / n * tile);
}

// What a kernel needs of the calling thread.
struct Running {
  explicit Running(const TileKernel& k) : kernel(k) {
    if (kernel.begin) kernel.begin();
  }
  ~Running() {
    if (kernel.end) kernel.end();
  }
  const TileKernel& kernel;
};

// In blocks. With a single pass one operand is packed once, the other for each block across it.
void run_region(const Gemm& g, const Plan& plan, const TileKernel& kernel, const Region& r) {
  const Running running(kernel);
  const bool single = plan.passes.size() == 1;
  const int64_t depth = std::max<int64_t>(plan.passes[0].depth, 1);
  const int64_t rows = single ? std::max<int64_t>(PACKED_A / depth, kernel.rows)
                              : std::max<int64_t>(BLOCK_ROWS / plan.slots, LEAST_ROWS);
  const int64_t down = (r.rows + rows - 1) / rows,
                across = (r.columns + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
  const int64_t tile_size = int64_t(kernel.rows) * kernel.columns;
  auto block = [&](int64_t y, int64_t x) {
    const int64_t top = cut(r.rows, kernel.rows, y, down),
                  left = cut(r.columns, kernel.columns, x, across);
    return Region{r.row + top, r.column + left, cut(r.rows, kernel.rows, y + 1, down) - top,
                  cut(r.columns, kernel.columns, x + 1, across) - left};
  };
  auto pack_a = [&](const Pass& pass, const Region& at) {
    return pack(g.a, false, pass, at.row, at.rows, kernel, packed_a);
  };
  auto pack_b = [&](const Pass& pass, const Region& at) {
    return pack(g.b, true, pass, at.column, at.columns, kernel, packed_b);
  };
  if (!single) {
    for (int64_t y = 0; y < down; y++)
      for (int64_t x = 0; x < across; x++) {
        const Region at = block(y, x);
        const int64_t tiles = ((at.rows + kernel.rows - 1) / kernel.rows) *
                              ((at.columns + kernel.columns - 1) / kernel.columns);
        const Slots slots{slot_memory.get<float>(tiles * tile_size * plan.slots), tiles};
        for (const Pass& pass : plan.passes)
          run_block(g, kernel, pass, at, slots, pack_a(pass, at), pack_b(pass, at));
      }
    return;
  }
  const Pass& pass = plan.passes[0];
  const Slots slots{slot_memory.get<float>(tile_size * plan.slots), 1};
  if (r.rows + down * r.columns < across * r.rows + r.columns) {
    for (int64_t y = 0; y < down; y++) {
      const float* a = pack_a(pass, block(y, 0));
      for (int64_t x = 0; x < across; x++) {
        const Region at = block(y, x);
        run_block(g, kernel, pass, at, slots, a, pack_b(pass, at));
      }
    }
  } else {
    for (int64_t x = 0; x < across; x++) {
      const float* b = pack_b(pass, block(0, x));
      for (int64_t y = 0; y < down; y++) {
        const Region at = block(y, x);
        run_block(g, kernel, pass, at, slots, pack_a(pass, at), b);
      }
    }
  }
}

// How many parts of rows: the grid of `threads` regions with the least work and packing in its
// largest region.
int64_t parts_of_rows(const Gemm& g, const TileKernel& kernel, int64_t threads) {
  constexpr int64_t PACKING = 16;  // packing an element costs about as much as 16 multiply-adds
  int64_t best = 1, best_cost = INT64_MAX;
  for (int64_t parts = 1; parts <= threads; parts++) {
    if (threads % parts) continue;
    auto largest = [](int64_t length, int64_t tile, int64_t n) {
      return ((length + tile - 1) / tile + n - 1) / n * tile;
    };
    const int64_t rows = largest(g.rows, kernel.rows, parts);
    const int64_t columns = largest(g.columns, kernel.columns, threads / parts);
    const int64_t cost = rows * columns + PACKING * (rows + columns);
    if (cost < best_cost) best = parts, best_cost = cost;
  }
  return best;
}

// By types and period alone: a short one would leave most of its last unit empty.
const TileKernel& kernel_of(const Gemm& g) {
  const bool shorts = g.a.dtype == DType::bfloat16 && g.b.dtype == DType::bfloat16;
  auto wasteful = [&](Packing packing, int64_t least) {
    return g.period % unit(packing) != 0 && g.period < least;
  };
  const TileKernel* amx = amx_kernel(active_isa());
  if (amx && shorts && !wasteful(amx->packing, 32)) return *amx;
  return tile_kernel(active_isa(), shorts && !wasteful(Packing::pairs, 16));
}

}  // namespace

void gemm(const Gemm& g) {
  const TileKernel& kernel = kernel_of(g);
  if (g.rows > 0 && g.columns > 0)
    run_region(g, make_plan(g, kernel), kernel, {0, 0, g.rows, g.columns});
}

void gemm_parallel(const Gemm& g) {
  const double work = double(g.rows) * double(g.columns) * double(g.depth);
  const int64_t n = std::min<int64_t>(threads(), 1 + int64_t(work / WORTH_A_THREAD));
  if (n <= 1) return parallel_for(1, 1, [&](int64_t, int64_t) { gemm(g); });
  const TileKernel& kernel = kernel_of(g);
  const Plan plan = make_plan(g, kernel);
  const int64_t down = parts_of_rows(g, kernel, n), across = n / down;
  parallel_for(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t y = i / across, x = i % across;
      const int64_t top = cut(g.rows, kernel.rows, y, down),
                    left = cut(g.columns, kernel.columns, x, across);
      run_region(g, plan, kernel,
                 {top, left, cut(g.rows, kernel.rows, y + 1, down) - top,
                  cut(g.columns, kernel.columns, x + 1, across) - left});
    }
  });
}

}  // namespace plait
