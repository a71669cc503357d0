// Which leaves of a sum over K a block adds up, and where each of their merges finds its lower half.
#pragma once
#include <cstdint>
#include <vector>

#include "core/error.hpp"

namespace plait {

constexpr int MOST_LEAVES = 128;  // of one call: they are arguments of a kernel

// A leaf, or a group of them that comes to one sum: at its end `near` sums that the block keeps are merged with it, lower +
// upper, then `far` slots of out (slot + far - 1 down to slot). It ends up in out's `slot`, or is kept.
struct Leaf {
  int64_t begin, end;  // of k; unused for groups
  int8_t near, far;
  int16_t slot;
  bool kept;
};
struct Leaves {
  Leaf leaf[MOST_LEAVES];
  int16_t first[MOST_LEAVES + 1];  // group g is first[g] ... first[g + 1]
  int groups;
};

// Leaves as one group each, which come to slots of out by `finish`; or, where there is but one group, all of it.
struct LeafPlan {
  Leaves leaves = {};        // with more than one group, sums of group g go to slot g of partial sums, not to out
  std::vector<Leaf> finish;  // how those merge; empty with one group
  int depth = 0;             // the most sums that a block keeps at once
};

// Simulates the stack: its slots below `slot` are out's.
inline std::vector<Leaf> place_leaves(const std::vector<int>& merges, int64_t slot) {
  std::vector<Leaf> found(merges.size());
  std::vector<size_t> open;  // what this call pushed
  for (size_t i = 0; i < merges.size(); i++) {
    Leaf& leaf = found[i];
    int64_t to = slot + int64_t(open.size());
    for (int m = 0; m < merges[i]; m++, to--) {
      if (open.empty()) {
        leaf.far++, slot--;
      } else {
        found[open.back()].kept = true;
        open.pop_back();
        leaf.near++;
      }
    }
    leaf.slot = int16_t(to);
    open.push_back(i);
  }
  return found;
}

// The end of the longest run of leaves from `begin`, of at most `most`, that comes to one sum by its own merges; inside gets
// how many merges of each of its leaves are its own.
inline size_t end_of_group(const std::vector<int>& merges, size_t begin, size_t most, std::vector<int>& inside) {
  size_t end = begin + 1;
  int open = 0;
  for (size_t i = begin; i < merges.size() && i < begin + most; i++) {
    if (merges[i] >= open) end = i + 1;  // with what is open it makes one, if no more than that merges here
    if (merges[i] > open) break;
    open += 1 - merges[i];
  }
  open = 0;
  for (size_t i = begin; i < end; i++) {
    inside[i] = merges[i] < open ? merges[i] : open;
    open += 1 - inside[i];
  }
  return end;
}

inline int depth_of(const std::vector<Leaf>& placed) {
  int depth = 0, kept = 0;
  for (const Leaf& leaf : placed) {
    kept += leaf.kept - leaf.near;
    depth = kept > depth ? kept : depth;
  }
  return depth;
}

// A stack's leaves in calls of at most MOST_LEAVES, each of which ends with no more sums open than there are slots.
struct LeafPart {
  size_t first, last;
  int64_t slot;  // where its first leaf goes
};
inline std::vector<LeafPart> leaf_parts(const char* call, const std::vector<int>& merges, int64_t slot, int64_t slots) {
  std::vector<LeafPart> parts;
  for (size_t first = 0; first < merges.size();) {
    LeafPart part = {first, first, slot};
    int64_t open = slot;
    for (size_t i = first; i < merges.size() && i < first + MOST_LEAVES; i++) {
      open += 1 - merges[i];
      if (open <= slots) part.last = i + 1, slot = open;
    }
    PLAIT_CHECK(part.last > first, call, "adds at most ", MOST_LEAVES, " leaves at once on a GPU, and ", merges.size(),
                " of them do not fit a stack of ", slots, " in parts");
    parts.push_back(part);
    first = part.last;
  }
  return parts;
}

// most: leaves of a group; at least as many as there are gives one group.
inline LeafPlan plan_leaves(const std::vector<int64_t>& bounds, const std::vector<int>& merges, int64_t slot, size_t most) {
  const size_t count = merges.size();
  PLAIT_CHECK(count <= size_t(MOST_LEAVES), "matmul", "adds at most ", MOST_LEAVES, " leaves at once on a GPU, got ", count);
  LeafPlan plan;
  std::vector<Leaf> placed;
  if (most >= count) {
    placed = place_leaves(merges, slot);
    plan.leaves.groups = 1;
    plan.leaves.first[1] = int16_t(count);
    plan.depth = depth_of(placed);
  } else {
    std::vector<int> inside(count), outer;
    for (size_t begin = 0; begin < count;) {
      const size_t end = end_of_group(merges, begin, most, inside);
      const std::vector<int> own(inside.begin() + long(begin), inside.begin() + long(end));
      std::vector<Leaf> group = place_leaves(own, 0);
      for (Leaf& leaf : group) leaf.slot = int16_t(outer.size());
      const int depth = depth_of(group);
      plan.depth = depth > plan.depth ? depth : plan.depth;
      placed.insert(placed.end(), group.begin(), group.end());
      outer.push_back(merges[end - 1] - inside[end - 1]);
      plan.leaves.first[outer.size()] = int16_t(end);
      begin = end;
    }
    plan.leaves.groups = int(outer.size());
    plan.finish = place_leaves(outer, slot);
  }
  for (size_t i = 0; i < count; i++) {
    plan.leaves.leaf[i] = placed[i];
    plan.leaves.leaf[i].begin = bounds[i], plan.leaves.leaf[i].end = bounds[i + 1];
  }
  return plan;
}

}  // namespace plait
