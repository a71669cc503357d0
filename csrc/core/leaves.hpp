// Checks of what kernels are told of leaves: where a sum is cut, and how its parts merge.
#pragma once
#include <cstdint>
#include <sstream>
#include <vector>

#include "core/error.hpp"

namespace plait {

inline void check_leaves(const char* call, const std::vector<int64_t>& leaves, int64_t depth) {
  bool ordered = !leaves.empty() && leaves.front() == 0 && leaves.back() == depth;
  for (size_t i = 1; i < leaves.size(); i++) ordered = ordered && leaves[i - 1] <= leaves[i];
  if (ordered) return;
  std::ostringstream text;
  for (int64_t bound : leaves) text << (text.tellp() > 0 ? ", " : "") << bound;
  fail(call, "leaves must ascend from 0 to the inner size ", depth, ", got {", text.str(), "}");
}

// A stack of `slots`, of which `slot` are in use when leaf 0 comes, or one more if it goes on there.
inline void check_merges(const char* call, const std::vector<int64_t>& leaves,
                         const std::vector<int>& merges, int64_t slot, bool accumulate,
                         int64_t slots) {
  bool fits = leaves.size() == merges.size() + 1 && !merges.empty() && slot >= 0 && slot < 32;
  int64_t open = slot;
  for (size_t i = 0; fits && i < merges.size(); i++) {
    fits = merges[i] >= 0 && merges[i] <= open && open < 63;
    open += 1 - merges[i];
  }
  PLAIT_CHECK(fits && open <= slots && slot + accumulate <= slots, call, "merges of ",
              merges.size(), " leaves (of ", int64_t(leaves.size()) - 1, ") from slot ", slot,
              " do not fit a stack of ", slots);
}

}  // namespace plait
