// One collective of a device's window, checked and cut into blocks and rounds; it may be launched as often as wanted.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "core/array.hpp"
#include "peer/device_kernels.hpp"
#include "peer/device_product.hpp"

namespace plait {

// What calls are cut for: the same on all ranks but for rank and arena.
struct DeviceRoom {
  int rank, size, grid;
  int64_t cell;  // bytes of staging that a block of the grid has
  bool split;    // ranks of one GPU take turns: stages apart, everything staged
  Tuning tuning;
  const char* base;  // of this rank's arena, and its bytes
  int64_t bytes;
};

struct DeviceCall {
  ReduceKernel reduce = nullptr;  // of these three the one that is there
  MoveKernel move = nullptr;
  std::shared_ptr<const ProductCall> product;
  ReduceTask reduce_task;
  MoveTask move_task;
  unsigned blocks = 1, threads = 32;
  int64_t shared = 0;
  int stages = 1;      // launches in split mode; of an all_to_all the most over all ranks counts
  int64_t copied = 0;  // bytes that go through staging since an array lies in no arena; of small ones nobody counts them
};

// What follows a sum that every rank gets: out = sum (+ bias, rounded) + residual, normed = norm(out).
struct Norm {
  ConstArray weight;
  std::optional<ConstArray> bias;  // layer norm; none: RMS norm
  float epsilon;
  Array normed;
  std::optional<Array> mean;
  Array rstd;
};

// What a sum of gradients is for (docs/gpu-collectives.md): float32 shards of this rank's slice, brought up to date.
struct Update {
  AdamW settings;
  Array master, first, second;
};

// Arrays are contiguous, on this device, and must live until the stream has done the call. ValueError if anything does not
// fit. An out that shares memory with its input must be one of its nodes (all_reduce), this rank's slice of one
// (reduce_scatter), x's place in out (all_gather). Moves take bytes; dtype says of which type they are.
DeviceCall device_reduce_call(const DeviceRoom& room, const ConstArray& nodes, const ReduceSpec& spec,
                              const std::optional<ConstArray>& bias, const Array& out,
                              const std::optional<ConstArray>& residual = {}, const std::optional<Norm>& norm = {},
                              const std::optional<Update>& update = {});
// The update alone, of a gradient that is summed already (length of this rank's slice): weights go to all ranks.
DeviceCall device_update_gather_call(const DeviceRoom& room, const ConstArray& grad, const std::vector<int64_t>& bounds,
                                     const Update& update, const Array& weight);
DeviceCall device_all_gather_call(const DeviceRoom& room, const ConstArray& x, const std::vector<int64_t>& lengths,
                                  const Array& out, const std::string& dtype);
DeviceCall device_all_to_all_call(const DeviceRoom& room, const ConstArray& x, const std::vector<int64_t>& sends,
                                  const Array& out, const std::vector<int64_t>& receives, const std::string& dtype);
DeviceCall device_broadcast_call(const DeviceRoom& room, const Array& x, int root, const std::string& dtype);
DeviceCall device_barrier_call();
// Products whose rows belong to several ranks, cut at `bounds`: three calls, one after the other, the last of which only a
// matmul_all_reduce needs. places: of every rank, in its arena, what its peers write, product_bytes() of it; outs: of a
// matmul_all_reduce, where every rank's out lies in its arena. Each rank has one node of the tree: its own sum is cut at
// `leaves`, merges are those of all ranks. wgmma: all ranks' devices have it.
struct ProductSpec {
  std::vector<int64_t> bounds, leaves;
  std::vector<int> merges;
  std::vector<int64_t> places, outs;
  bool wgmma = false;
};
std::vector<DeviceCall> device_matmul_reduce_calls(const DeviceRoom& room, const ConstArray& x, const ConstArray& w,
                                                   const ProductSpec& spec, bool gather, const Array& out);
std::vector<DeviceCall> device_all_gather_matmul_calls(const DeviceRoom& room, const ConstArray& x, const ConstArray& w,
                                                       const ProductSpec& spec, const Array& out);
// Whether x, w and the cuts are as those calls need them: bfloat16, contiguous, beside boundaries of 16 bytes, with as many
// tiles as there are flags.
bool product_fits(const ConstArray& x, const ConstArray& w, const std::vector<int64_t>& leaves, const std::vector<int64_t>& bounds,
                  bool sums);
// As refused_call of the CPU's windows: ranks hear that one refuses.
DeviceCall device_refused_call();

}  // namespace plait
