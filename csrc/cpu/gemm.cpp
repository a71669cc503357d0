// Blocking: k runs in passes that the caches hold. A pass of a block of out has both operands
// packed, and every tile goes through all of its leaves while their open tree nodes, the slots, lie
// in L1.
#include "cpu/gemm.hpp"

#include <algorithm>

#include "cpu/gemm_block.hpp"
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
