// What the kernels of a node's collectives are told, and the numbers that they are cut by.
#pragma once
#include "core/optimizer.hpp"
#include "peer/device_layout.hpp"

namespace plait {

// None of these has been measured on a GPU; each is the same on all ranks, and the ranks tell each other what follows from it.
struct Tuning {
  // Up to so many bytes, times the ranks, every rank adds everything itself: one meeting and (size - 1) n bytes over a
  // rank's links, in place of two meetings and 2 (size - 1) / size n.
  int64_t once_bytes = 1 << 20;
  // What a block of the grid should have to do, of its rank's slice: 512 threads, 16 bytes each. Fewer blocks have fewer
  // flags to write and wait for.
  int64_t block_bytes = 8 << 10;
};
constexpr int MOST_THREADS = 512;  // of a block, one block on a multiprocessor: 8 loads of 16 bytes of each are under way
constexpr int MOST_PARTS = 128;    // nodes of all ranks
constexpr int MOST_DEPTH = 12;     // sums that are set aside while a tree is added up, in shared memory
constexpr int64_t PIECE_ALIGN = 16;  // bytes: pieces in cells

struct NormTask {  // of rows of `channels`: normed = norm(out), with layer norm's mean and bias or without
  int64_t channels;  // 0: none
  const void *weight, *bias;
  bool float32_weight, centred;
  float epsilon;
  void* normed;
  float *mean, *rstd;
};

struct UpdateTask {  // the sum is a gradient: AdamW's step of this rank's slice, whose new weights are what all ranks get
  AdamW settings;
  float *master, *first, *second;  // null: none
};

// Nodes (k, outer, width) on every rank; slice q is columns [bounds[q], bounds[q + 1]), and element e of it is column
// e % length of row e / length. A block of the grid has `share` elements of every slice, from share * its index on; a round
// moves `window` of them.
struct ReduceTask {
  Said said;  // source and out: offsets in the arena
  const char* source;
  char* out;
  const float* bias;
  int64_t bias_length;
  const char* residual;
  NormTask norm;
  UpdateTask update;
  int op;
  bool once, gather;  // once: there is one slice, and every rank adds it for itself
  int64_t width, outer, share, window;
  int64_t node_pitch, result_at, pitch;  // of a piece in a cell, in bytes
  int64_t bounds[MOST_RANKS + 1];
  uint8_t nodes[MOST_RANKS];
  int parts;
  uint8_t merges[MOST_PARTS];
};

// Bytes; of an all_to_all piece q of x goes to rank q, else all of it to everyone, or the root's.
struct MoveTask {
  Said said;
  const char* x;
  char* out;
  int kind, root;
  int64_t window;                // of a cell, for one piece
  int64_t from[MOST_RANKS + 1], to[MOST_RANKS + 1];
};

// What each of `blocks` blocks moves of a piece of so many bytes.
PLAIT_INLINE int64_t move_share(int64_t bytes, int blocks) { return ((bytes + blocks - 1) / blocks + 15) / 16 * 16; }

}  // namespace plait
