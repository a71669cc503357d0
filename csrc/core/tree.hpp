// The one binary tree of additions as merges of a stack: split at the largest power of two below n.
#pragma once
#include <cstdint>
#include <vector>

namespace plait {

// After pushing leaf i on a stack, its top two merge merges[i] times (lower + upper): complete
// sub-trees are those of a binary counter, the last leaf closes what is open. The same tree as
// plait.comm.tree.
inline std::vector<int> tree_merges(int64_t leaves) {
  std::vector<int> merges;
  merges.reserve(size_t(leaves));
  int open = 0;
  for (int64_t leaf = 0; leaf < leaves; leaf++) {
    int count = 0;
    if (leaf + 1 == leaves) {
      count = open;
    } else {
      while (!((leaf + 1) >> count & 1)) count++;
    }
    merges.push_back(count);
    open += 1 - count;
  }
  return merges;
}

}  // namespace plait
