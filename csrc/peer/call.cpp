// Checks of what a collective is given, and how it is cut into rounds.
#include "peer/call.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace plait {
namespace {

// Bytes of a slice that a round moves: small enough to stay in cache from writer to reader, and a quarter of the slice,
// so that one side copies while the other adds.
constexpr int64_t LEAST = 16 << 10;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_bytes(const ConstArray& x) { return x.dtype == DType::uint8 && x.contiguous(); }

bool rising(const std::vector<int64_t>& bounds, int64_t last) {
  return bounds.front() == 0 && bounds.back() == last && std::is_sorted(bounds.begin(), bounds.end());
}

Call make(Call::Kind kind, const void* source, void* out) {
  Call c;
  c.kind = kind;
  c.source = static_cast<const char*>(source);
  c.out = static_cast<char*>(out);
  c.said.call = number_of(kind);
  return c;
}

}  // namespace

Call reduce_call(const Room& room, const ConstArray& nodes, const ReduceSpec& spec,
                 const std::optional<ConstArray>& bias, const Array& out) {
  PLAIT_CHECK(int(spec.nodes.size()) == room.size && int(spec.bounds.size()) == room.size + 1, "window",
              "a reduction of ", spec.nodes.size(), " ranks and ", spec.bounds.size(), " bounds on ", room.size, " ranks");
  PLAIT_CHECK(rising(spec.bounds, spec.bounds.back()), "window", "the bounds of a reduction must rise from 0");
  const size_t own = size_t(room.rank);
  const int64_t n = spec.bounds.back(), item = size_of(nodes.dtype), out_item = size_of(out.dtype);
  PLAIT_CHECK(nodes.size() == spec.nodes[own] * spec.outer * n && nodes.contiguous() && out.contiguous(), "window",
              "nodes ", shape_text(nodes), " are not ", spec.nodes[own], " x ", spec.outer, " x ", n);
  PLAIT_CHECK(can_combine(nodes.dtype, out.dtype, spec.op), "window", "cannot reduce ", name_of(nodes.dtype), " to ",
              name_of(out.dtype));
  const int64_t length = spec.bounds[own + 1] - spec.bounds[own];
  PLAIT_CHECK(out.size() == (spec.gather ? n : spec.outer * length) && (!spec.gather || spec.outer == 1), "window",
              "out is ", shape_text(out));
  PLAIT_CHECK(!bias || (bias->ndim == 1 && bias->dtype == DType::float32 && bias->contiguous() &&
                        (n == 0 || (bias->size() > 0 && n % bias->size() == 0))),
              "window", "bias ", shape_text(*bias), " is no contiguous float32 vector whose length divides ", n);

  Call c = make(Call::Kind::reduce, nodes.data, const_cast<void*>(out.data));
  int64_t all = 0, most = 1;
  for (int rank = 0; rank < room.size; rank++) {
    all += spec.nodes[size_t(rank)];
    most = std::max<int64_t>(most, spec.nodes[size_t(rank)]);
    c.longest = std::max(c.longest, spec.bounds[size_t(rank) + 1] - spec.bounds[size_t(rank)]);
  }
  PLAIT_CHECK(int64_t(spec.merges.size()) == all, "window", spec.merges.size(), " merge counts for ", all, " nodes");
  // bytes of a column in a cell, where a result lies over its part, or behind the parts if it is of another type
  const bool behind = spec.gather && out_item != item;
  const int64_t deep = most * item + (behind ? out_item : 0);
  PLAIT_CHECK(deep + ALIGN <= room.cell, "window", most, " nodes do not fit into ", room.cell, " bytes");
  c.spec = spec, c.bias = bias, c.dtype = nodes.dtype, c.out_dtype = out.dtype;
  c.said.call = number_of_reduction(spec.gather, spec.op, int64_t(nodes.dtype), int64_t(out.dtype));
  c.said.size = spec.outer * n * item;
  mix(c.said.layout, spec.nodes);
  mix(c.said.layout, spec.merges);
  mix(c.said.layout, spec.bounds);
  mix<int64_t>(c.said.layout, {spec.outer, bias ? bias->size() : -1});
  c.inlined = most * spec.outer * (spec.gather ? n : c.longest) * item <= room.inside;
  const int64_t bytes = std::min(room.cell - (behind ? ALIGN : 0), std::max(LEAST, c.longest * deep / 4)), columns = std::max<int64_t>(1, bytes / deep);
  c.window = std::min(c.longest, columns > 64 ? columns / 64 * 64 : columns);
  c.rows = std::max<int64_t>(1, std::min(spec.outer, columns / c.window));
  c.windows = ceil_div(c.longest, c.window);
  c.said.rounds = std::max<int64_t>(1, c.windows * ceil_div(spec.outer, c.rows));
  return c;
}

Call all_gather_call(const Room& room, const ConstArray& x, const std::vector<int64_t>& lengths, const Array& out,
                     const std::string& dtype) {
  std::vector<int64_t> to = {0};
  for (int64_t length : lengths) to.push_back(to.back() + length);
  PLAIT_CHECK(int(lengths.size()) == room.size && x.size() == lengths[size_t(room.rank)] && is_bytes(x) &&
                  is_bytes(out) && rising(to, out.size()),
              "window", "all_gather of ", shape_text(x), " into ", shape_text(out));
  Call c = make(Call::Kind::all_gather, x.data, const_cast<void*>(out.data));
  c.longest = std::max<int64_t>(1, *std::max_element(lengths.begin(), lengths.end()));
  c.inlined = c.longest <= room.inside;
  c.to = std::move(to);
  mix(c.said.layout, c.to);
  c.said.call = number_of(c.kind, 0, type_number(dtype));
  c.window = room.size * room.cell;
  c.said.size = out.size(), c.said.rounds = ceil_div(c.longest, c.window);
  return c;
}

Call all_to_all_call(const Room& room, const ConstArray& x, const std::vector<int64_t>& sends, const Array& out,
                     const std::vector<int64_t>& receives, const std::string& dtype) {
  PLAIT_CHECK(int(sends.size()) == room.size + 1 && int(receives.size()) == room.size + 1 && rising(sends, x.size()) &&
                  rising(receives, out.size()) && is_bytes(x) && is_bytes(out),
              "window", "all_to_all of ", shape_text(x), " into ", shape_text(out));
  const size_t own = size_t(room.rank);
  PLAIT_CHECK(sends[own + 1] - sends[own] == receives[own + 1] - receives[own], "window", "all_to_all sends ",
              sends[own + 1] - sends[own], " bytes to itself and receives ", receives[own + 1] - receives[own]);
  Call c = make(Call::Kind::all_to_all, x.data, const_cast<void*>(out.data));
  c.from = sends, c.to = receives, c.window = room.cell;
  c.said.call = number_of(c.kind, 0, type_number(dtype));
  c.said.layout = balance(room.rank, sends, receives);
  for (size_t rank = 0; rank < size_t(room.size); rank++) {
    const int64_t sent = sends[rank + 1] - sends[rank], received = receives[rank + 1] - receives[rank];
    c.said.rounds = std::max(c.said.rounds, ceil_div(std::max(sent, received), c.window));
  }
  return c;
}

Call broadcast_call(const Room& room, const Array& x, int root, const std::string& dtype) {
  PLAIT_CHECK(is_bytes(x) && root >= 0 && root < room.size, "window", "broadcast of ", shape_text(x), " from ", root);
  Call c = make(Call::Kind::broadcast, x.data, const_cast<void*>(x.data));
  c.to = {0, x.size()};
  c.inlined = x.size() <= room.inside;
  c.root = root, c.window = room.size * room.cell;
  c.said.call = number_of(c.kind, root, type_number(dtype)), c.said.size = x.size();
  c.said.rounds = std::max<int64_t>(1, ceil_div(x.size(), c.window));
  return c;
}

Call barrier_call() {
  Call c = make(Call::Kind::barrier, nullptr, nullptr);
  c.inlined = true;
  return c;
}

Call outside_call(Reduce op, const std::string& dtype, const std::string& out_dtype, bool gather, int64_t bytes) {
  Call c = barrier_call();
  c.said.call = number_of_reduction(gather, op, type_number(dtype), type_number(out_dtype));
  c.said.size = bytes;
  return c;
}

Call refused_call() {
  Call c = make(Call::Kind::refused, nullptr, nullptr);
  c.inlined = true;
  return c;
}

}  // namespace plait
