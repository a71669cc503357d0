// Checks of products whose rows belong to several ranks, and how their tiles follow each other.
#include <algorithm>

#include "cuda/device.hpp"
#include "cuda/matmul_engine.hpp"
#include "peer/device_cut.hpp"
#include "peer/device_window.hpp"

namespace plait {
namespace {

constexpr const char* WINDOW = "device window";
constexpr int TILE_ROWS = 128;

bool fits(const ConstArray& x) {
  return x.ndim == 2 && x.dtype == DType::bfloat16 && x.size() > 0 && x.contiguous() && x.shape[1] % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

// What is said of it before its kernel starts, and compared: a meeting.
DeviceCall entry_call(const Said& said) {
  DeviceCall c = device_barrier_call();
  c.move_task.kind = said.kind(), c.move_task.said = said;
  return c;
}

std::vector<DeviceCall> calls_of(const DeviceRoom& room, CallKind kind, ProductCall& call, const ProductSpec& spec,
                                 const ConstArray& x, const ConstArray& w, const Array& out, int64_t m) {
  const int size = room.size;
  ProductTask& task = call.task;
  PLAIT_CHECK(product_fits(x, w, spec.leaves, spec.bounds, task.sums), WINDOW, "a product of ", shape_text(x), " and ",
              shape_text(w), " cut at ", spec.bounds.size(), " bounds is not as its kernel needs it");
  const int64_t k = w.shape[0], n = w.shape[1];
  PLAIT_CHECK(std::max({m, n, k}) < (int64_t(1) << 30), WINDOW, "a product of ", m, " x ", n, " x ", k, " is too large");
  PLAIT_CHECK(int(spec.bounds.size()) == size + 1 && spec.bounds.front() == 0 && spec.bounds.back() == m &&
                  std::is_sorted(spec.bounds.begin(), spec.bounds.end()),
              WINDOW, "the bounds of a product must rise from 0 to its ", m, " rows");
  PLAIT_CHECK(int(spec.places.size()) == size, WINDOW, "a product needs a place of each rank");
  const bool everywhere = kind != CallKind::matmul_reduce_scatter;
  const int64_t own = spec.bounds[size_t(room.rank) + 1] - spec.bounds[size_t(room.rank)], rows = everywhere ? m : own;
  PLAIT_CHECK(out.ndim == 2 && out.shape[0] == rows && out.shape[1] == n && out.contiguous() &&
                  (out.dtype == DType::float32 || out.dtype == DType::bfloat16) &&
                  reinterpret_cast<uintptr_t>(out.data) % 16 == 0 && !overlap(x, out) && !overlap(w, out),
              WINDOW, "a product of ", shape_text(x), " and ", shape_text(w), " into ", shape_text(out));
  PLAIT_CHECK(!spec.wgmma || wgmma_available(), WINDOW, "this device has no wgmma");
  call.x = x.data, call.w = w.data, call.leaves = spec.leaves, call.wgmma = spec.wgmma;
  task.m = int(m), task.n = int(n), task.k = int(k);
  std::copy(spec.bounds.begin(), spec.bounds.end(), task.bounds);
  std::copy(spec.places.begin(), spec.places.end(), task.places);
  task.out = static_cast<char*>(const_cast<void*>(out.data)), task.x = static_cast<const char*>(x.data);
  task.half = out.dtype == DType::bfloat16;
  // tiles must be the same on all ranks: what they follow from is
  int64_t least = m;
  for (int q = 0; q < size; q++) least = std::min<int64_t>(least, task.rows(q));
  call.columns = n <= 128 ? 128 : task.sums ? WIDE_SUMS : WIDE_GATHER;
  call.cluster = spec.wgmma && least > TILE_ROWS ? 2 : 1;
  call.blocks = room.grid < DeviceWindow::resident_blocks() ? room.grid : 0;

  Said& said = task.said;
  said.call = number_of(kind, 0, int64_t(DType::bfloat16), int64_t(task.sums ? out.dtype : DType::bfloat16));
  said.size = task.sums ? m * n * size_of(out.dtype) : m * k * 2;  // of the rows that are gathered: what each rank makes is its own
  mix(said.layout, spec.bounds);
  mix<int64_t>(said.layout, {spec.wgmma, task.sums ? n : k});
  mix(said.layout, spec.merges);
  call.wgmma ? prepare_product_wgmma(call) : prepare_product_mma(call);
  DeviceCall product;
  product.stages = 2;
  product.product = std::make_shared<const ProductCall>(std::move(call));
  std::vector<DeviceCall> calls = {entry_call(said), product};
  if (kind == CallKind::matmul_all_reduce) calls.push_back(device_barrier_call());  // all rows have arrived
  return calls;
}

}  // namespace

bool product_fits(const ConstArray& x, const ConstArray& w, const std::vector<int64_t>& leaves, const std::vector<int64_t>& bounds,
                  bool sums) {
  if (!fits(x) || !fits(w) || x.shape[1] != w.shape[0] || leaves.size() < 2 || leaves.size() > 65 || bounds.size() < 2) return false;
  if (leaves.front() != 0 || leaves.back() != x.shape[1] || !std::is_sorted(leaves.begin(), leaves.end())) return false;
  int64_t most = 0;
  for (size_t q = 0; q + 1 < bounds.size(); q++) most = std::max(most, bounds[q + 1] - bounds[q]);
  // flags of a rank's own rows, by tiles of 128 x 128 at most a cluster's more, or by pieces
  const int64_t units = sums ? (ceil_div(most, TILE_ROWS) + 1) * ceil_div(w.shape[1], 128) * 2 : ceil_div(most, PIECE_ROWS);
  return units <= TILE_FLAGS / int64_t(bounds.size() - 1) &&
         std::all_of(leaves.begin(), leaves.end() - 1, [](int64_t leaf) { return leaf % 16 == 0; });
}

std::vector<DeviceCall> device_matmul_reduce_calls(const DeviceRoom& room, const ConstArray& x, const ConstArray& w,
                                                   const ProductSpec& spec, bool gather, const Array& out) {
  ProductCall call;
  ProductTask& task = call.task;
  task.sums = true, task.gather = gather;
  PLAIT_CHECK(int(spec.merges.size()) == room.size, WINDOW, "a product of ", spec.merges.size(), " nodes on ", room.size, " ranks");
  int open = 0;
  for (int merges : spec.merges) {
    open++;
    PLAIT_CHECK(merges >= 0 && merges < open && open - 1 <= PRODUCT_DEPTH, WINDOW, "a product whose tree sets ", open - 1,
                " sums aside, at most ", PRODUCT_DEPTH);
    open -= merges;
  }
  std::copy(spec.merges.begin(), spec.merges.end(), task.merges);
  if (gather) {
    PLAIT_CHECK(int(spec.outs.size()) == room.size &&
                    offset_in(room, out.data, out.size() * size_of(out.dtype)) == spec.outs[size_t(room.rank)],
                WINDOW, "a matmul_all_reduce into ", shape_text(out), " that does not lie in the arena");
    std::copy(spec.outs.begin(), spec.outs.end(), task.outs);
  }
  return calls_of(room, gather ? CallKind::matmul_all_reduce : CallKind::matmul_reduce_scatter, call, spec, x, w, out, x.shape[0]);
}

std::vector<DeviceCall> device_all_gather_matmul_calls(const DeviceRoom& room, const ConstArray& x, const ConstArray& w,
                                                       const ProductSpec& spec, const Array& out) {
  ProductCall call;
  const size_t own = size_t(room.rank);
  PLAIT_CHECK(spec.bounds.size() > own + 1 && spec.bounds[own + 1] - spec.bounds[own] == x.shape[0] && spec.leaves.size() == 2,
              WINDOW, "all_gather_matmul of ", shape_text(x), " that is not this rank's rows, or in leaves");
  return calls_of(room, CallKind::all_gather_matmul, call, spec, x, w, out, spec.bounds.back());
}

ProductWalk product_walk(const Peers& peers, const ProductCall& call, int tile_rows, int only) {
  const ProductTask& task = call.task;
  ProductWalk walk = {};
  walk.columns = int(ceil_div(task.n, call.wgmma ? call.columns : TILE_ROWS));
  // a sum's own rows come last, when the peers' parts of them have been sent; own rows of x come first
  walk.start = (peers.rank + (task.sums ? 1 : 0)) % peers.size;
  for (int step = 0; step < peers.size; step++) {
    const int rows = task.rows((walk.start + step) % peers.size);
    walk.first[step + 1] = walk.first[step] + int(ceil_div(rows, tile_rows)) * walk.columns;
  }
  const int middle = walk.first[task.sums ? peers.size - 1 : 1];
  walk.begin = only == 1 ? middle : 0, walk.end = only == 0 ? middle : walk.first[peers.size];
  return walk;
}

void launch_product(const Peers& peers, const ProductCall& call, int only) {
  call.wgmma ? launch_product_wgmma(peers, call, only) : launch_product_mma(peers, call, only);
}

}  // namespace plait
