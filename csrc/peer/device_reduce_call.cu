// Checks of reductions, and how they are cut into blocks and rounds.
#include <algorithm>
#include <cstring>

#include "core/norm.hpp"
#include "cuda/device.hpp"
#include "peer/device_cut.hpp"

namespace plait {
namespace {

constexpr const char* WINDOW = "device window";
constexpr int64_t UNIT = 64;  // elements: blocks begin on a boundary of 128 bytes or more

bool is_float(DType t) { return t == DType::float32 || t == DType::bfloat16; }

void check_spec(const DeviceRoom& room, const ConstArray& nodes, const ReduceSpec& spec, const Array& out) {
  PLAIT_CHECK(int(spec.nodes.size()) == room.size && int(spec.bounds.size()) == room.size + 1, WINDOW, "a reduction of ",
              spec.nodes.size(), " ranks and ", spec.bounds.size(), " bounds on ", room.size, " ranks");
  PLAIT_CHECK(spec.bounds.front() == 0 && std::is_sorted(spec.bounds.begin(), spec.bounds.end()), WINDOW,
              "the bounds of a reduction must rise from 0");
  const size_t own = size_t(room.rank);
  const int64_t n = spec.bounds.back(), length = spec.bounds[own + 1] - spec.bounds[own];
  PLAIT_CHECK(spec.outer >= 1 && nodes.size() == spec.nodes[own] * spec.outer * n && nodes.contiguous() && out.contiguous(),
              WINDOW, "nodes ", shape_text(nodes), " are not ", spec.nodes[own], " x ", spec.outer, " x ", n);
  PLAIT_CHECK(can_combine(nodes.dtype, out.dtype, spec.op) && reduce_kernel_of(nodes.dtype, out.dtype), WINDOW, "cannot reduce ",
              name_of(nodes.dtype), " to ", name_of(out.dtype));
  PLAIT_CHECK(out.size() == (spec.gather ? n : spec.outer * length) && (!spec.gather || spec.outer == 1), WINDOW, "out is ",
              shape_text(out));
  int64_t parts = 0;
  for (int count : spec.nodes) {
    PLAIT_CHECK(count >= 0, WINDOW, "a rank has ", count, " nodes");
    parts += count;
  }
  PLAIT_CHECK(parts <= MOST_PARTS, WINDOW, "adds at most ", MOST_PARTS, " nodes, got ", parts);
  PLAIT_CHECK(int64_t(spec.merges.size()) == parts, WINDOW, spec.merges.size(), " merge counts for ", parts, " nodes");
  if (!overlap(nodes, out)) return;
  const char *to = static_cast<const char*>(out.data), *from = static_cast<const char*>(nodes.data);
  bool in_place = false;
  for (int64_t node = 0; node < spec.nodes[own]; node++)
    in_place = in_place || to == from + (node * n + (spec.gather ? 0 : spec.bounds[own])) * size_of(nodes.dtype);
  PLAIT_CHECK(in_place && out.dtype == nodes.dtype && spec.outer == 1, WINDOW,
              "out shares memory with nodes, but is none of them, nor this rank's slice of one");
}

// The most sums set aside at a time.
int depth_of(const std::vector<int>& merges) {
  int64_t open = 0, depth = 0;
  for (size_t i = 0; i < merges.size(); i++) {
    open++;
    PLAIT_CHECK(merges[i] >= 0 && merges[i] < open, WINDOW, "merges[", i, "] = ", merges[i], " with ", open, " nodes on the stack");
    if (merges[i] == 0) depth = std::max(depth, open - 1);
    open -= merges[i];
  }
  PLAIT_CHECK(open == 1, WINDOW, "the merges leave ", open, " sums, must leave 1");
  PLAIT_CHECK(depth <= MOST_DEPTH, WINDOW, "sets at most ", MOST_DEPTH, " sums aside, this tree needs ", depth);
  return int(depth);
}

void set_bias(ReduceTask& task, const std::optional<ConstArray>& bias) {
  if (!bias) return;
  const int64_t n = task.width;
  PLAIT_CHECK(bias->ndim == 1 && bias->dtype == DType::float32 && bias->contiguous() &&
                  (n == 0 || (bias->size() > 0 && n % bias->size() == 0)),
              WINDOW, "bias ", shape_text(*bias), " is no contiguous float32 vector whose length divides ", n);
  task.bias = bias->as<float>(), task.bias_length = bias->size();
}

void set_residual(ReduceTask& task, const std::optional<ConstArray>& residual, const Array& out) {
  if (!residual) return;
  PLAIT_CHECK(task.gather && is_float(out.dtype) && residual->dtype == out.dtype && residual->size() == out.size() &&
                  residual->contiguous(),
              WINDOW, "a residual is for an all_reduce of floats, and like out ", shape_text(out), ", got ", shape_text(*residual));
  PLAIT_CHECK(residual->data == out.data || !overlap(*residual, out), WINDOW, "residual and out overlap in part");
  task.residual = static_cast<const char*>(residual->data);
}

void set_norm(ReduceTask& task, const std::optional<Norm>& norm, const Array& out, const ReduceSpec& spec) {
  if (!norm) return;
  const int64_t n = norm->weight.size();
  PLAIT_CHECK(task.gather && is_float(out.dtype) && norm->weight.ndim == 1 && n > 0 && out.size() % n == 0, WINDOW,
              "a norm is for an all_reduce of floats whose rows are as long as its weight ", shape_text(norm->weight), ", out is ",
              shape_text(out));
  for (int64_t bound : spec.bounds)
    PLAIT_CHECK(bound % n == 0, WINDOW, "with a norm all bounds are multiples of its ", n, " channels, got ", bound);
  Array x = out;
  x.ndim = 2, x.shape[0] = out.size() / n, x.shape[1] = n, x.strides[0] = n, x.strides[1] = 1;
  Array normed = norm->normed;
  PLAIT_CHECK(normed.size() == out.size() && normed.contiguous() && !overlap(normed, out), WINDOW, "normed is ",
              shape_text(normed), ", must be as out ", shape_text(out), " and elsewhere");
  normed.ndim = 2;
  for (int axis : {0, 1}) normed.shape[axis] = x.shape[axis], normed.strides[axis] = x.strides[axis];
  PLAIT_CHECK(norm->bias.has_value() == norm->mean.has_value(), WINDOW, "a layer norm has a bias and a mean, an RMS norm neither");
  check_norm_forward(WINDOW, x, {}, norm->weight, norm->bias ? &*norm->bias : nullptr, {}, normed,
                     norm->mean ? &*norm->mean : nullptr, norm->rstd);
  norm_types(WINDOW, x, norm->weight, [](auto, auto) {});
  NormTask& to = task.norm;
  to.channels = n, to.weight = norm->weight.data, to.float32_weight = norm->weight.dtype == DType::float32;
  to.centred = norm->bias.has_value(), to.epsilon = norm->epsilon;
  to.normed = const_cast<void*>(norm->normed.data), to.rstd = norm->rstd.as<float>();
  if (to.centred) to.bias = norm->bias->data, to.mean = norm->mean->as<float>();
}

void set_update(ReduceTask& task, const std::optional<Update>& update, const Array& out, int64_t start, int64_t length) {
  if (!update) return;
  PLAIT_CHECK(task.gather && is_float(out.dtype) && !task.residual && !task.norm.channels && !task.bias, WINDOW,
              "an update is of an all_reduce of floats to weights, with nothing else behind it");
  for (const Array* x : {&update->master, &update->first, &update->second}) {
    check_shard(WINDOW, "a shard", *x, update->master);
    // float32 weights can be the master: an element is read and written by one thread
    const bool own = x == &update->master && out.dtype == DType::float32 &&
                     x->data == static_cast<const char*>(out.data) + start * int64_t(sizeof(float));
    PLAIT_CHECK(x->dtype == DType::float32 && x->size() == length && (own || !overlap(*x, out)), WINDOW, "a shard is ",
                shape_text(*x), ", must be float32, as long as this rank's slice of ", length,
                ", and no part of the weights but, for master, that slice");
  }
  static float none;  // a slice may be empty
  const auto data = [](const Array& x) { return x.data ? x.as<float>() : &none; };
  task.update = {update->settings, data(update->master), data(update->first), data(update->second)};
}

// Blocks and rounds, from numbers that all ranks have.
void cut(DeviceCall& c, const DeviceRoom& room, const ReduceSpec& spec, int64_t item, int64_t out_item) {
  ReduceTask& task = c.reduce_task;
  const int slices = task.once ? 1 : room.size;
  int64_t longest = 0, most = 1;
  for (int q = 0; q < slices; q++) longest = std::max(longest, task.outer * (task.bounds[q + 1] - task.bounds[q]));
  for (int count : spec.nodes) most = std::max<int64_t>(most, count);
  c.blocks = blocks_of(room, longest * item);
  const int64_t unit = task.norm.channels ? task.norm.channels : UNIT;
  task.share = round_up(std::max<int64_t>(1, ceil_div(longest, c.blocks)), unit);
  // a cell holds a piece for each slice: nodes, then (all_reduce) the result
  const bool returned = task.gather && !task.once;
  const int64_t column = most * item + (returned ? out_item : 0), room_for = room.cell / slices - (most + 1) * PIECE_ALIGN;
  PLAIT_CHECK(room_for >= column, WINDOW, most, " nodes for ", slices, " ranks do not fit into ", room.cell, " bytes");
  const int64_t columns = room_for / column;
  task.window = std::min(task.share, columns >= UNIT ? columns / UNIT * UNIT : columns >= 16 ? columns / 16 * 16 : columns);
  task.node_pitch = round_up(task.window * item, PIECE_ALIGN);
  task.result_at = most * task.node_pitch;
  task.pitch = task.result_at + (returned ? round_up(task.window * out_item, PIECE_ALIGN) : 0);
  c.threads = threads_of(task.share * item);
  task.said.rounds = std::max<int64_t>(1, ceil_div(task.share, task.window));
  c.stages = int(task.said.rounds) + 1 + returned;
}

// As many threads as have a place for the sums that they set aside.
void set_threads(DeviceCall& c, DType in, int depth) {
  for (;; c.threads = (c.threads / 2 + 31) / 32 * 32) {
    c.shared = reduce_shared_bytes(in, depth, int(c.threads));
    if (c.shared <= device_properties().shared_bytes || c.threads == 32) break;
  }
}

}  // namespace

DeviceCall device_reduce_call(const DeviceRoom& room, const ConstArray& nodes, const ReduceSpec& spec,
                              const std::optional<ConstArray>& bias, const Array& out, const std::optional<ConstArray>& residual,
                              const std::optional<Norm>& norm, const std::optional<Update>& update) {
  check_spec(room, nodes, spec, out);
  DeviceCall c;
  ReduceTask& task = c.reduce_task = {};
  const int64_t item = size_of(nodes.dtype), n = spec.bounds.back();
  task.source = static_cast<const char*>(nodes.data);
  task.out = static_cast<char*>(const_cast<void*>(out.data));
  task.op = int(spec.op), task.gather = spec.gather;
  task.width = n, task.outer = spec.outer;
  int64_t most = 1;
  for (size_t rank = 0; rank < spec.nodes.size(); rank++) {
    PLAIT_CHECK(spec.nodes[rank] < 256, WINDOW, "a rank has ", spec.nodes[rank], " nodes");
    task.nodes[rank] = uint8_t(spec.nodes[rank]);
    most = std::max<int64_t>(most, spec.nodes[rank]);
  }
  task.parts = int(spec.merges.size());
  const int depth = depth_of(spec.merges);
  for (size_t i = 0; i < spec.merges.size(); i++) task.merges[i] = uint8_t(spec.merges[i]);
  const bool small = !worth_an_exit(room, most * spec.outer * n * item);
  task.once = spec.gather && small && !update;  // the owner alone has the shard
  for (int q = 0; q <= room.size; q++) task.bounds[q] = spec.bounds[size_t(q)];
  if (task.once) task.bounds[1] = n;
  set_bias(task, bias);
  set_residual(task, residual, out);
  set_norm(task, norm, out, spec);
  set_update(task, update, out, spec.bounds[size_t(room.rank)],
             spec.bounds[size_t(room.rank) + 1] - spec.bounds[size_t(room.rank)]);
  cut(c, room, spec, item, size_of(out.dtype));

  Said& said = task.said;
  said.call = number_of_reduction(spec.gather, spec.op, int64_t(nodes.dtype), int64_t(out.dtype));
  said.size = spec.outer * n * item;
  mix(said.layout, spec.nodes);
  mix(said.layout, spec.merges);
  mix(said.layout, spec.bounds);
  mix<int64_t>(said.layout, {spec.outer, bias ? bias->size() : -1, residual.has_value(), task.norm.channels,
                             task.norm.centred, update.has_value(), task.once, c.blocks, task.share, task.window, task.pitch});
  if (!small && !room.split) {
    said.source = offset_in(room, nodes.data, nodes.size() * item);
    if (spec.gather) said.out = offset_in(room, out.data, n * size_of(out.dtype));
  }
  if (!small)
    c.copied = (said.source < 0 ? nodes.size() * item : 0) + (spec.gather && said.out < 0 ? n * size_of(out.dtype) : 0);

  c.reduce = reduce_kernel_of(nodes.dtype, out.dtype);
  set_threads(c, nodes.dtype, depth);
  return c;
}

DeviceCall device_update_gather_call(const DeviceRoom& room, const ConstArray& grad, const std::vector<int64_t>& bounds,
                                     const Update& update, const Array& weight) {
  ReduceSpec spec;
  spec.nodes.assign(size_t(room.size), 1);
  spec.bounds = bounds, spec.gather = true;
  PLAIT_CHECK(int(bounds.size()) == room.size + 1 && bounds.front() == 0 && std::is_sorted(bounds.begin(), bounds.end()), WINDOW,
              "the bounds of an update must rise from 0, one more than ranks");
  const size_t own = size_t(room.rank);
  const int64_t n = bounds.back(), length = bounds[own + 1] - bounds[own];
  PLAIT_CHECK(grad.dtype == DType::float32 && grad.contiguous() && grad.size() == length, WINDOW, "grad is ", shape_text(grad),
              ", must be float32 and contiguous, ", length, " elements");
  PLAIT_CHECK(is_float(weight.dtype) && weight.contiguous() && weight.size() == n && !overlap(grad, weight), WINDOW, "weight is ",
              shape_text(weight), ", must be contiguous floats, ", n, " of them, and share nothing with grad");
  DeviceCall c;
  ReduceTask& task = c.reduce_task = {};
  task.source = static_cast<const char*>(grad.data) - bounds[own] * 4;  // the kernel begins at the slice
  task.out = static_cast<char*>(const_cast<void*>(weight.data));
  task.gather = true, task.width = n, task.outer = 1;
  task.nodes[own] = 1, task.parts = 1;  // of all nodes this rank adds its own
  std::copy(bounds.begin(), bounds.end(), task.bounds);
  set_update(task, update, weight, bounds[size_t(room.rank)], length);
  cut(c, room, spec, 4, size_of(weight.dtype));
  Said& said = task.said;
  said.call = number_of_reduction(true, Reduce::sum, int64_t(grad.dtype), int64_t(weight.dtype));
  said.size = n * 4;
  mix(said.layout, bounds);
  mix<int64_t>(said.layout, {-2, c.blocks, task.share, task.window, task.pitch});
  said.source = 0;  // nobody reads it
  if (!room.split) said.out = offset_in(room, weight.data, n * size_of(weight.dtype));
  c.copied = said.out < 0 ? n * size_of(weight.dtype) : 0;
  c.reduce = reduce_kernel_of(grad.dtype, weight.dtype);
  set_threads(c, grad.dtype, 0);
  return c;
}

}  // namespace plait
