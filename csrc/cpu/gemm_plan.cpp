// Leaves are cut into pieces, pieces make passes, and in each pass a leaf's pieces are one chunk.
#include "cpu/gemm_plan.hpp"

#include <algorithm>

#include "core/tree.hpp"

namespace plait {
namespace {

// A leaf's k in pieces of at most about `most` that share no pair, and no block.
std::vector<Run> pieces(int64_t begin, int64_t end, int64_t period, int64_t most) {
  std::vector<Run> found;
  while (begin < end) {
    const int64_t length = period > 0 ? std::min(period, end - begin) : end - begin;
    const int64_t n = (length + most - 1) / most;
    for (int64_t i = 0, from = 0; i < n; i++) {
      const int64_t to = i == n - 1 ? length : length * (i + 1) / n / 32 * 32;
      found.push_back({begin + from, to - from, 0});
      from = to;
    }
    begin += length;
  }
  return found;
}

void add_piece(Pass& pass, const Run& piece, Packing packing) {
  Run* last = pass.runs.empty() ? nullptr : &pass.runs.back();
  if (last && last->k + last->length == piece.k && (last->length % unit(packing) == 0))
    last->length += piece.length;
  else
    pass.runs.push_back({piece.k, piece.length, pass.depth});
  pass.depth += packed_size(packing, piece.length);
}

// For each leaf whether a later one merges with what it ends up in.
std::vector<bool> merged_later(const std::vector<int>& merges) {
  std::vector<bool> found(merges.size());
  std::vector<size_t> open;  // leaves that slots were last written by
  for (size_t leaf = 0; leaf < merges.size(); leaf++) {
    for (int m = 0; m < merges[leaf] && !open.empty(); m++) {
      found[open.back()] = true;
      open.pop_back();
    }
    open.push_back(leaf);
  }
  return found;
}

}  // namespace

Plan make_plan(const Gemm& g, const TileKernel& kernel, int64_t longest) {
  const Packing packing = kernel.packing;
  Plan plan;
  const std::vector<int64_t> whole{0, g.depth}, &leaves = g.leaves.size() > 1 ? g.leaves : whole;
  const int64_t period = g.period % unit(packing) == 0 ? 0 : g.period;
  const size_t count = leaves.size() - 1;
  const std::vector<int> merges = g.merges.empty() ? tree_merges(int64_t(count)) : g.merges;
  const std::vector<bool> kept = merged_later(merges);
  const int64_t most = longest / packed_size(packing, 32) * 32;
  auto fits = [&](const Run& piece) {
    return plan.passes.back().depth + packed_size(packing, piece.length) <= longest;
  };
  int slot = g.slot, stored = g.slot;
  for (size_t leaf = 0; leaf < count; leaf++) {
    const std::vector<Run> found = pieces(leaves[leaf], leaves[leaf + 1], period, most);
    size_t next = 0;
    do {
      if (plan.passes.empty() || (next < found.size() && !fits(found[next])))
        plan.passes.emplace_back();
      Pass& pass = plan.passes.back();
      Chunk c{pass.depth, 0, slot, SLOT, 0, stored, false};
      if (next == 0) c.init = leaf == 0 && g.accumulate ? OUT : ZERO;
      while (next < found.size() && (pass.depth == c.begin || fits(found[next])))
        add_piece(pass, found[next++], packing);
      c.end = pass.depth;
      if (next == found.size()) {
        c.merges = merges[leaf];
        c.last = !kept[leaf];
      }
      plan.slots = std::max(plan.slots, slot - c.merges + 1);
      pass.chunks.push_back(c);
    } while (next < found.size());
    slot -= merges[leaf];
    stored = std::min(stored, slot);
    if (!kept[leaf]) stored = slot + 1;
    slot++;
  }
  return plan;
}

}  // namespace plait
