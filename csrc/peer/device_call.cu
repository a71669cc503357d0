// Checks of what moves; barriers. device_reduce_call.cu has the reductions.
#include "peer/device_call.hpp"

#include <algorithm>

#include "peer/device_cut.hpp"

namespace plait {
namespace {

constexpr const char* WINDOW = "device window";

bool is_bytes(const ConstArray& x) { return x.dtype == DType::uint8 && x.contiguous(); }

DeviceCall moving(CallKind kind, const void* x, void* out) {
  DeviceCall c;
  c.move = move_kernel();
  c.shared = move_shared_bytes();
  MoveTask& task = c.move_task = {};
  task.x = static_cast<const char*>(x), task.out = static_cast<char*>(out), task.kind = int(kind);
  task.said.call = number_of(kind);
  c.stages = 2;
  return c;
}

// Pieces of at most `most` bytes in cells for `cells` of them; small ones are staged wherever they lie.
void cut(DeviceCall& c, const DeviceRoom& room, int64_t most, int cells, bool all_blocks) {
  MoveTask& task = c.move_task;
  task.window = room.cell / cells / PIECE_ALIGN * PIECE_ALIGN;
  PLAIT_CHECK(task.window > 0, WINDOW, "a cell of ", room.cell, " bytes is too small for ", cells, " pieces");
  c.blocks = all_blocks ? unsigned(room.grid) : blocks_of(room, most);
  const int64_t share = move_share(most, int(c.blocks));
  c.threads = threads_of(share);
  task.said.rounds = std::max<int64_t>(1, ceil_div(share, task.window));
  c.stages = int(task.said.rounds) + 1;
}

void find_source(DeviceCall& c, const DeviceRoom& room, int64_t bytes, int64_t most) {
  if (!worth_an_exit(room, most)) return;
  c.move_task.said.source = room.split ? -1 : offset_in(room, c.move_task.x, bytes);
  if (c.move_task.said.source < 0) c.copied = bytes;
}

}  // namespace

DeviceCall device_all_gather_call(const DeviceRoom& room, const ConstArray& x, const std::vector<int64_t>& lengths,
                                  const Array& out, const std::string& dtype) {
  std::vector<int64_t> to = {0};
  for (int64_t length : lengths) to.push_back(to.back() + length);
  const bool fits = int(lengths.size()) == room.size && std::is_sorted(to.begin(), to.end()) && is_bytes(x) && is_bytes(out) &&
                    x.size() == lengths[size_t(room.rank)] && out.size() == to.back();
  PLAIT_CHECK(fits, WINDOW, "all_gather of ", shape_text(x), " into ", shape_text(out));
  const char *own = static_cast<const char*>(out.data) + to[size_t(room.rank)], *from = static_cast<const char*>(x.data);
  PLAIT_CHECK(from == own || !overlap(x, out), WINDOW, "all_gather: x lies in out, but not in its place there");
  DeviceCall c = moving(CallKind::all_gather, x.data, const_cast<void*>(out.data));
  MoveTask& task = c.move_task;
  task.from[1] = x.size();
  std::copy(to.begin(), to.end(), task.to);
  task.said.call = number_of(CallKind::all_gather, 0, type_number(dtype));
  task.said.size = out.size();
  const int64_t most = *std::max_element(lengths.begin(), lengths.end());
  cut(c, room, most, 1, false);
  mix(task.said.layout, to);
  mix<int64_t>(task.said.layout, {c.blocks, task.window});
  find_source(c, room, x.size(), most);
  return c;
}

DeviceCall device_all_to_all_call(const DeviceRoom& room, const ConstArray& x, const std::vector<int64_t>& sends,
                                  const Array& out, const std::vector<int64_t>& receives, const std::string& dtype) {
  const auto rising = [&](const std::vector<int64_t>& bounds, int64_t last) {
    return int(bounds.size()) == room.size + 1 && bounds.front() == 0 && bounds.back() == last &&
           std::is_sorted(bounds.begin(), bounds.end());
  };
  PLAIT_CHECK(rising(sends, x.size()) && rising(receives, out.size()) && is_bytes(x) && is_bytes(out), WINDOW, "all_to_all of ",
              shape_text(x), " into ", shape_text(out));
  const size_t own = size_t(room.rank);
  PLAIT_CHECK(sends[own + 1] - sends[own] == receives[own + 1] - receives[own], WINDOW, "all_to_all sends ",
              sends[own + 1] - sends[own], " bytes to itself and receives ", receives[own + 1] - receives[own]);
  PLAIT_CHECK(!overlap(x, out), WINDOW, "all_to_all: x and out share memory");
  DeviceCall c = moving(CallKind::all_to_all, x.data, const_cast<void*>(out.data));
  MoveTask& task = c.move_task;
  std::copy(sends.begin(), sends.end(), task.from);
  std::copy(receives.begin(), receives.end(), task.to);
  int64_t most = 0;
  for (size_t q = 0; q < size_t(room.size); q++)
    most = std::max({most, sends[q + 1] - sends[q], receives[q + 1] - receives[q]});
  cut(c, room, most, room.size, true);  // how much other ranks move is not known here
  task.said.call = number_of(CallKind::all_to_all, 0, type_number(dtype));
  task.said.layout = balance(room.rank, sends, receives);
  find_source(c, room, x.size(), INT64_MAX);
  return c;
}

DeviceCall device_broadcast_call(const DeviceRoom& room, const Array& x, int root, const std::string& dtype) {
  PLAIT_CHECK(is_bytes(x) && root >= 0 && root < room.size, WINDOW, "broadcast of ", shape_text(x), " from ", root);
  DeviceCall c = moving(CallKind::broadcast, x.data, const_cast<void*>(x.data));
  MoveTask& task = c.move_task;
  task.root = root, task.from[1] = x.size();
  for (int q = root; q < room.size; q++) task.to[q + 1] = x.size();
  cut(c, room, x.size(), 1, false);
  task.said.call = number_of(CallKind::broadcast, root, type_number(dtype));
  task.said.size = x.size();
  mix<int64_t>(task.said.layout, {c.blocks, task.window});
  if (room.rank == root) find_source(c, room, x.size(), x.size());
  return c;
}

DeviceCall device_barrier_call() { return moving(CallKind::barrier, nullptr, nullptr); }

DeviceCall device_refused_call() { return moving(CallKind::refused, nullptr, nullptr); }

}  // namespace plait
