// Blocking: k runs in passes that the caches hold. A pass of a block of out has both operands
// packed, and every tile goes through all of its leaves while their open tree nodes, the slots, lie
// in L1.
#include "cpu/gemm.hpp"

#include <algorithm>

#include "cpu/gemm_finish.hpp"
#include "cpu/gemm_operand.hpp"
#include "cpu/gemm_plan.hpp"
#include "cpu/gemm_tile.hpp"
#include "cpu/scratch.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t PACKED_A = 1024 * 1024;  // of a packed at once: a part of L3
constexpr int64_t BLOCK_COLUMNS = 1024;    // of out; b is packed this wide
constexpr int64_t BLOCK_ROWS = 1024;  // all slots together; between passes they wait in scratch
constexpr int64_t LEAST_ROWS = 256;
constexpr double WORTH_A_THREAD = 1 << 20;  // multiply-adds

thread_local Scratch packed_a, packed_b, slot_memory;

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
    const Places places(g, target, p.row, p.column, p.rows);
    if (c.init != OUT) prefetch_tile(g, places, p.rows, p.columns);
    kernel.run(t, p.rows, p.columns);
    if (!direct) finish_tile(g, local, kernel.columns, p.column, p.rows, p.columns, places);
  }
}

// Where tiles wait between passes; in a single pass all share the slots of one tile.
struct Slots {
  float* data;
  int64_t tiles;
};

// A block of out through one pass, rows in groups whose a lies in L2.
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

// Even blocks of a region.
struct Blocks {
  Blocks(const Region& r, const TileKernel& k, int64_t rows)
      : region(r),
        kernel(k),
        down((r.rows + rows - 1) / rows),
        across((r.columns + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS) {}
  Region at(int64_t y, int64_t x) const {
    const Region& r = region;
    const int64_t top = cut(r.rows, kernel.rows, y, down),
                  left = cut(r.columns, kernel.columns, x, across);
    return {r.row + top, r.column + left, cut(r.rows, kernel.rows, y + 1, down) - top,
            cut(r.columns, kernel.columns, x + 1, across) - left};
  }
  Region region;
  const TileKernel& kernel;
  int64_t down, across;
};

Packed pack_a(const Gemm& g, const TileKernel& kernel, const Pass& pass, const Region& at) {
  return pack(g.a, false, pass, at.row, at.rows, kernel, packed_a);
}
Packed pack_b(const Gemm& g, const TileKernel& kernel, const Pass& pass, const Region& at) {
  return pack(g.b, true, pass, at.column, at.columns, kernel, packed_b);
}

// Block by block, all passes: sums wait in slots.
void run_passes(const std::vector<Gemm>& several, const std::vector<Plan>& plans,
                const TileKernel& kernel, const Region& r) {
  int slots = 1;
  size_t passes = 0;
  for (const Plan& plan : plans)
    slots = std::max(slots, plan.slots), passes = std::max(passes, plan.passes.size());
  const Blocks blocks(r, kernel, std::max<int64_t>(BLOCK_ROWS / slots, LEAST_ROWS));
  for (int64_t y = 0; y < blocks.down; y++)
    for (int64_t x = 0; x < blocks.across; x++) {
      const Region at = blocks.at(y, x);
      const int64_t tiles = ((at.rows + kernel.rows - 1) / kernel.rows) *
                            ((at.columns + kernel.columns - 1) / kernel.columns);
      const int64_t size = tiles * kernel.rows * kernel.columns * slots;
      float* memory = slot_memory.get<float>(size * int64_t(several.size()));
      for (size_t p = 0; p < passes; p++)
        for (size_t i = 0; i < several.size(); i++) {
          if (p >= plans[i].passes.size()) continue;
          const Pass& pass = plans[i].passes[p];
          run_block(several[i], kernel, pass, at, {memory + int64_t(i) * size, tiles},
                    pack_a(several[i], kernel, pass, at), pack_b(several[i], kernel, pass, at));
        }
    }
}

// One operand is packed once, the other for each block across it.
void run_single(const Gemm& g, const Plan& plan, const TileKernel& kernel, const Region& r) {
  const Pass& pass = plan.passes[0];
  const int64_t most = r.columns > BLOCK_COLUMNS ? PACKED_A : kernel.group / 4;  // b is packed once
  const Blocks blocks(r, kernel,
                      std::max<int64_t>(most / std::max<int64_t>(pass.depth, 1), kernel.rows));
  const Slots slots{slot_memory.get<float>(int64_t(kernel.rows) * kernel.columns * plan.slots), 1};
  const int64_t down = blocks.down, across = blocks.across;
  if (r.rows + down * r.columns < across * r.rows + r.columns) {
    for (int64_t y = 0; y < down; y++) {
      const Packed a = pack_a(g, kernel, pass, blocks.at(y, 0));
      for (int64_t x = 0; x < across; x++) {
        const Region at = blocks.at(y, x);
        run_block(g, kernel, pass, at, slots, a, pack_b(g, kernel, pass, at));
      }
    }
  } else {
    for (int64_t x = 0; x < across; x++) {
      const Packed b = pack_b(g, kernel, pass, blocks.at(0, x));
      for (int64_t y = 0; y < down; y++) {
        const Region at = blocks.at(y, x);
        run_block(g, kernel, pass, at, slots, pack_a(g, kernel, pass, at), b);
      }
    }
  }
}

void run_region(const std::vector<Gemm>& several, const std::vector<Plan>& plans,
                const TileKernel& kernel, const Region& r) {
  const Running running(kernel);
  const bool single = std::all_of(plans.begin(), plans.end(),
                                  [](const Plan& plan) { return plan.passes.size() == 1; });
  if (!single) return run_passes(several, plans, kernel, r);
  for (size_t i = 0; i < several.size(); i++) run_single(several[i], plans[i], kernel, r);
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

// By types and the longest period alone: short ones would leave most of their units empty.
const TileKernel& kernel_of(const std::vector<Gemm>& several) {
  constexpr int64_t WORTH_A_UNIT = 8;
  const Gemm& g = several[0];
  int64_t period = 0;
  for (const Gemm& each : several) period = std::max(period, each.period);
  const bool shorts = g.a.dtype == DType::bfloat16 && g.b.dtype == DType::bfloat16;
  auto fits = [&](Packing packing) {
    return period % unit(packing) == 0 || period >= WORTH_A_UNIT;
  };
  const TileKernel* amx = amx_kernel(active_isa());
  if (amx && shorts && fits(amx->packing)) return *amx;
  return tile_kernel(active_isa(), shorts && fits(Packing::pairs));
}

struct Work {
  explicit Work(const std::vector<Gemm>& several) : kernel(kernel_of(several)) {
    // Side by side what they share waits in L2 meanwhile, between shorter passes.
    const int64_t longest = several.size() > 1 ? kernel.pass / 2 : kernel.pass;
    for (const Gemm& g : several) plans.push_back(make_plan(g, kernel, longest));
  }
  const TileKernel& kernel;
  std::vector<Plan> plans;
};

}  // namespace

void gemm(const Gemm& g) {
  if (g.rows <= 0 || g.columns <= 0) return;
  const std::vector<Gemm> one{g};
  const Work work(one);
  run_region(one, work.plans, work.kernel, {0, 0, g.rows, g.columns});
}

void gemm_parallel(const Gemm& g) {
  gemm_parallel(std::vector<Gemm>{g});
}

void gemm_parallel(const std::vector<Gemm>& several) {
  const Gemm& g = several[0];
  if (g.rows <= 0 || g.columns <= 0) return;
  double depth = 0;
  for (const Gemm& each : several) depth += double(each.depth);
  const double work = double(g.rows) * double(g.columns) * depth;
  const int64_t n = std::min<int64_t>(threads(), 1 + int64_t(work / WORTH_A_THREAD));
  const Work made(several);
  const TileKernel& kernel = made.kernel;
  const int64_t down = parts_of_rows(g, kernel, n), across = n / down;
  parallel_for(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t y = i / across, x = i % across;
      const int64_t top = cut(g.rows, kernel.rows, y, down),
                    left = cut(g.columns, kernel.columns, x, across);
      run_region(several, made.plans, kernel,
                 {top, left, cut(g.rows, kernel.rows, y + 1, down) - top,
                  cut(g.columns, kernel.columns, x + 1, across) - left});
    }
  });
}

}  // namespace plait
