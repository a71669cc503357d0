// What the ranks of a window tell each other about a collective, on a CPU or a GPU: which one, of what, how it is cut.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/inline.hpp"

namespace plait {

enum class Reduce : int { sum, max, min };

// Which reductions a window adds up itself.
bool can_combine(DType in, DType out, Reduce op);

enum class CallKind {
  reduce, all_gather, all_to_all, broadcast, barrier, refused,
  all_reduce,  // said of a reduction that all ranks get
  matmul_reduce_scatter, matmul_all_reduce, all_gather_matmul
};

// One reduction: every rank has nodes (k, outer, n); n is cut at bounds, one slice for each rank.
struct ReduceSpec {
  std::vector<int> nodes;       // k of every rank
  std::vector<int> merges;      // of the nodes of all ranks, in rank order
  std::vector<int64_t> bounds;  // size + 1 columns
  int64_t outer = 1;
  Reduce op = Reduce::sum;
  bool gather = false;  // every rank gets all slices; outer is 1
};

// What a rank tells its peers about a collective.
struct Said {
  int64_t source = -1, out = -1;  // offsets in its arena, or -1
  int64_t rounds = 1;
  int64_t call = 0, size = 0;     // what all ranks must agree on, and with it
  uint64_t layout = 0xcbf29ce484222325;  // how it is cut over ranks
  // Of an all_to_all size is what goes to the rank that this is said to, in bytes; layout is what a rank sends less what
  // it receives, every pair of ranks by a factor of its own: over all ranks that adds up to 0.
  PLAIT_HOST_DEVICE int kind() const { return int(call & 0xff); }
  bool agrees(const Said& other) const;
  std::string text() const;
};

// Ranks that call the same collective with different arrays.
class Disagreement : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The kind of collective, its op or root, its type and that of its result in one number.
int64_t number_of(CallKind kind, int64_t detail = 0, int64_t dtype = 0, int64_t out_dtype = 0);
int64_t number_of_reduction(bool gather, Reduce op, int64_t dtype, int64_t out_dtype);
int64_t type_number(const std::string& name);

// One number for many (FNV-1a): ranks that cut the same array differently notice it.
template <class T>
void mix(uint64_t& hash, const std::vector<T>& numbers) {
  for (T number : numbers) hash = (hash ^ uint64_t(number)) * 0x100000001b3ull;
}

// The layout that a rank tells of an all_to_all: what it sends less what it receives, each pair by a factor of its own.
uint64_t balance(int rank, const std::vector<int64_t>& sends, const std::vector<int64_t>& receives);

// What two ranks that disagree are told.
std::string disagreement(int rank, const Said& mine, int peer, const Said& theirs);
// ... and whether it is about the arguments of one collective only.
bool same_collective(const Said& mine, const Said& theirs);

}  // namespace plait
