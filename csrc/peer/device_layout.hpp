// Where things lie in the block that a communicator has in each rank's arena: first what a rank keeps for itself, flags and
// letters that its peers write, then two staging buffers, in which every block of the grid has a cell of its own.
#pragma once
#include <cstdint>

#include "core/inline.hpp"
#include "peer/said.hpp"

namespace plait {

constexpr int MOST_RANKS = 16;    // of a communicator inside a node
constexpr int MOST_BLOCKS = 128;  // of a collective's grid; not measured: about one for each multiprocessor
constexpr int64_t LINE = 128;     // bytes: what is written by different ranks lies apart
constexpr int TILE_FLAGS = 1 << 15;  // of a product whose rows belong to several ranks, over all who write them

// What a rank says to each peer, once for each block of the grid, so that a block waits for its like only.
struct alignas(64) DeviceLetter {
  Said said;
  uint32_t number;  // of the collective
};
static_assert(sizeof(DeviceLetter) == 64, "a letter is four stores of 16 bytes");

// What a block of the grid knows from the collectives before: in device memory, so that a graph can be replayed.
struct BlockState {
  uint32_t epoch;   // of the last meeting; never goes back, may wrap around
  uint32_t round;   // whose parity chooses the staging buffer
  uint32_t calls;   // whose parity chooses the letters
  uint32_t number;  // of collectives of this communicator, also of those that this block had no part in
};

// Of a rank, for all blocks.
struct Sticky {
  uint64_t limit;   // nanoseconds that a meeting may take
  uint32_t failed;  // by a block of this rank: it ends, and whatever comes later does nothing
  uint32_t entered;  // the number of the product whose ranks have met, 0 where they have not
  alignas(LINE) uint32_t aborted;  // by a peer or a host: its rank + 1
};

// Why a rank's collectives ended, in host memory; `code` is written last.
enum class Failure : uint32_t { none, late, differs, unbalanced, aborted };
struct FailureReport {
  uint32_t code, peer, number, stage;
  Said own, theirs;
};

// Addresses as this process sees them; they never change, so a captured graph may hold them.
struct Peers {
  char* blocks[MOST_RANKS];
  char* bases[MOST_RANKS];  // of the arenas
  FailureReport* report;
  int rank, size, grid;  // grid: the most blocks of a collective, the same on all ranks
  int64_t cell;          // bytes of a staging buffer that a block of the grid has

  PLAIT_INLINE Sticky* sticky(int of) const { return reinterpret_cast<Sticky*>(blocks[of]); }
  PLAIT_INLINE BlockState* state(int block) const {
    return reinterpret_cast<BlockState*>(blocks[rank] + 2 * LINE + int64_t(block) * LINE);
  }
  // Of this block of the grid, which `from` writes to `of`.
  PLAIT_INLINE uint32_t* flag(int of, int block, int from) const {
    return reinterpret_cast<uint32_t*>(blocks[of] + (2 + MOST_BLOCKS) * LINE) + block * MOST_RANKS + from;
  }
  PLAIT_INLINE DeviceLetter* letter(int of, int block, int from, uint32_t call) const {
    DeviceLetter* const letters = reinterpret_cast<DeviceLetter*>(blocks[of] + letters_at());
    return letters + (int64_t(block) * size + from) * 2 + call % 2;
  }
  PLAIT_INLINE char* cell_of(int of, int block, uint32_t round) const {
    return blocks[of] + control_bytes(size) + (int64_t(round % 2) * grid + block) * cell;
  }
  // Of a unit of a product (device_product.hpp), which `from` writes to `of`: the number of the collective.
  PLAIT_INLINE uint32_t* tile_flag(int of, int from, int unit) const {
    return reinterpret_cast<uint32_t*>(blocks[of] + letters_at() + letter_bytes(size)) + from * (TILE_FLAGS / size) + unit;
  }

  static PLAIT_INLINE int64_t letters_at() { return (2 + MOST_BLOCKS) * LINE + int64_t(MOST_BLOCKS) * MOST_RANKS * 4; }
  static PLAIT_INLINE int64_t letter_bytes(int size) { return int64_t(MOST_BLOCKS) * size * 2 * int64_t(sizeof(DeviceLetter)); }
  static PLAIT_INLINE int64_t control_bytes(int size) { return letters_at() + letter_bytes(size) + TILE_FLAGS * 4; }
};
static_assert(sizeof(Sticky) == 2 * LINE, "the blocks' states come after it");

}  // namespace plait
