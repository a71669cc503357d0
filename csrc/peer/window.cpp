// The rounds of a window's collectives: flags, staging, reading. A block holds, line by line of 64 bytes, the flags
// that the peers write, one for the error, two Said, then two staging buffers of a cell per rank and two results.
#include "peer/window.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/error.hpp"

namespace plait {
namespace {

constexpr int64_t LINE = 64;
constexpr int64_t SMALL = 1 << 14;   // bytes of all nodes of all ranks: below, every rank adds everything
constexpr int64_t SLICE_US = 1000;   // of work, after which advance() returns

int64_t microseconds() {
  using namespace std::chrono;
  return duration_cast<std::chrono::microseconds>(steady_clock::now().time_since_epoch()).count();
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_bytes(const ConstArray& x) { return x.dtype == DType::uint8 && x.contiguous(); }

// What ranks must agree on: the kind of collective, its type and op or root in one number, and bytes.
int64_t call_of(int kind, DType dtype = DType::uint8, int detail = 0) {
  return kind | int64_t(dtype) << 8 | int64_t(detail) << 16;
}

std::string describe(int64_t call, int64_t size) {
  static const char* kinds[] = {"a reduce_scatter", "an all_gather", "an all_to_all", "a broadcast", "a barrier", "an all_reduce"};
  static const char* ops[] = {"sum", "max", "min"};
  const int kind = int(call & 0xff), detail = int(call >> 16);
  std::string text = kinds[kind];
  if (kind == 0 || kind == 5) text += std::string(" (") + ops[detail] + " of " + name_of(DType(call >> 8 & 0xff)) + ")";
  if (kind == 3) text += " from rank " + std::to_string(detail);
  if (kind != 2 && kind != 4) text += " of " + std::to_string(size) + " bytes";
  return text;
}

bool rising(const std::vector<int64_t>& bounds, int64_t last) {
  return bounds.front() == 0 && bounds.back() == last && std::is_sorted(bounds.begin(), bounds.end());
}

}  // namespace

Window::Window(std::shared_ptr<Arena> arena, std::vector<std::shared_ptr<Mapping>> peers, int rank, int64_t staging)
    : arena_(std::move(arena)), peers_(std::move(peers)), rank_(rank), size_(int(peers_.size())) {
  PLAIT_CHECK(rank_ >= 0 && rank_ < size_, "window", "rank ", rank_, " of ", size_);
  cell_ = std::max<int64_t>(staging / size_ / LINE, 64) * LINE;
  offset_ = arena_->allocate((FLAGS * size_ + 3) * LINE + 2 * (size_ + 1) * cell_);
  std::memset(arena_->base() + offset_, 0, size_t((FLAGS * size_ + 3) * LINE));
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void Window::connect(const std::vector<int64_t>& offsets) {
  PLAIT_CHECK(int(offsets.size()) == size_, "window", offsets.size(), " offsets for ", size_, " ranks");
  for (int rank = 0; rank < size_; rank++) {
    bases_.push_back(rank == rank_ ? arena_->base() : peers_[size_t(rank)]->base());
    blocks_.push_back(bases_.back() + offsets[size_t(rank)]);
  }
}

void Window::close() {
  PLAIT_CHECK(!now_, "window", "closed inside a collective");
  if (!blocks_.empty()) arena_->release(offset_);
  blocks_.clear();
}

std::atomic<int64_t>& Window::flag(int rank, int line) const {
  return reinterpret_cast<Line*>(blocks_[size_t(rank)] + line * LINE)->value;
}

Window::Said& Window::said(int rank) const {
  return *reinterpret_cast<Said*>(blocks_[size_t(rank)] + (FLAGS * size_ + 1 + collectives_ % 2) * LINE);
}

char* Window::staging(int rank, int64_t round) const {
  const int64_t epoch = now_->first + round;
  return blocks_[size_t(rank)] + (FLAGS * size_ + 3) * LINE + (epoch % 2) * size_ * cell_;
}

char* Window::result(int rank, int64_t round) const {
  const int64_t epoch = now_->first + round;
  return blocks_[size_t(rank)] + (FLAGS * size_ + 3) * LINE + (2 * size_ + epoch % 2) * cell_;
}

// --- starting ------------------------------------------------------------------------------------

Window::Collective& Window::begin(Kind kind, const void* source, void* out) {
  PLAIT_CHECK(!blocks_.empty(), "window", "not connected, or closed");
  PLAIT_CHECK(!now_, "window", "a collective is under way");
  now_.emplace();
  now_->kind = kind;
  now_->first = next_epoch_;
  now_->source = static_cast<const char*>(source);
  now_->out = static_cast<char*>(out);
  collectives_++;
  return *now_;
}

void Window::start_reduce(const ConstArray& nodes, const ReduceSpec& spec, const std::optional<ConstArray>& bias,
                          const Array& out) {
  PLAIT_CHECK(int(spec.nodes.size()) == size_ && int(spec.bounds.size()) == size_ + 1, "window", "a reduction of ",
              spec.nodes.size(), " ranks and ", spec.bounds.size(), " bounds on ", size_, " ranks");
  PLAIT_CHECK(rising(spec.bounds, spec.bounds.back()), "window", "the bounds of a reduction must rise from 0");
  const int64_t n = spec.bounds.back(), item = size_of(nodes.dtype), out_item = size_of(out.dtype);
  PLAIT_CHECK(nodes.size() == spec.nodes[size_t(rank_)] * spec.outer * n && nodes.contiguous() && out.contiguous(),
              "window", "nodes ", shape_text(nodes), " are not ", spec.nodes[size_t(rank_)], " x ", spec.outer, " x ", n);
  PLAIT_CHECK(can_combine(nodes.dtype, out.dtype, spec.op), "window", "cannot reduce ", name_of(nodes.dtype), " to ",
              name_of(out.dtype));
  const int64_t own = spec.bounds[size_t(rank_) + 1] - spec.bounds[size_t(rank_)];
  PLAIT_CHECK(out.size() == (spec.gather ? n : spec.outer * own) && (!spec.gather || spec.outer == 1), "window",
              "out is ", shape_text(out));
  PLAIT_CHECK(!bias || (bias->ndim == 1 && bias->dtype == DType::float32 && bias->contiguous() &&
                        (n == 0 || (bias->size() > 0 && n % bias->size() == 0))),
              "window", "bias ", shape_text(*bias), " is no contiguous float32 vector whose length divides ", n);

  int64_t all = 0, most = 1, longest = 0;
  for (int rank = 0; rank < size_; rank++) {
    all += spec.nodes[size_t(rank)];
    most = std::max<int64_t>(most, spec.nodes[size_t(rank)]);
    longest = std::max(longest, spec.bounds[size_t(rank) + 1] - spec.bounds[size_t(rank)]);
  }
  PLAIT_CHECK(int64_t(spec.merges.size()) == all, "window", spec.merges.size(), " merge counts for ", all, " nodes");
  PLAIT_CHECK(most * item <= cell_ && out_item <= cell_, "window", most, " nodes do not fit into ", cell_, " bytes");
  Collective& c = begin(Kind::reduce, nodes.data, const_cast<void*>(out.data));
  c.spec = spec, c.bias = bias, c.dtype = nodes.dtype, c.out_dtype = out.dtype;
  c.said.call = call_of(spec.gather ? 5 : int(Kind::reduce), nodes.dtype, int(spec.op)), c.said.size = spec.outer * n * item;
  c.small = spec.gather && all * n * item <= SMALL && most * n * item <= size_ * cell_;
  if (!c.small) {
    const int64_t room = cell_ / std::max(most * item, out_item);
    c.window = std::max<int64_t>(1, std::min(longest, room > 64 ? room / 64 * 64 : room));
    c.rows = std::max<int64_t>(1, std::min(spec.outer, room / c.window));
    c.windows = std::max<int64_t>(1, ceil_div(longest, c.window));
    c.rounds = std::max<int64_t>(1, c.windows * ceil_div(spec.outer, c.rows));
    c.said.source = arena_->find(nodes.data, nodes.size() * item);
    if (spec.gather) c.said.out = arena_->find(out.data, n * out_item);
  }
}

void Window::start_all_gather(const ConstArray& x, const std::vector<int64_t>& lengths, const Array& out) {
  std::vector<int64_t> to = {0};
  for (int64_t length : lengths) to.push_back(to.back() + length);
  PLAIT_CHECK(int(lengths.size()) == size_ && x.size() == lengths[size_t(rank_)] && is_bytes(x) && is_bytes(out) &&
                  rising(to, out.size()),
              "window", "all_gather of ", shape_text(x), " into ", shape_text(out));
  Collective& c = begin(Kind::all_gather, x.data, const_cast<void*>(out.data));
  c.to = std::move(to);
  c.window = size_ * cell_;
  c.said.call = call_of(int(Kind::all_gather)), c.said.size = out.size();
  c.rounds = std::max<int64_t>(1, ceil_div(*std::max_element(lengths.begin(), lengths.end()), c.window));
  c.said.source = arena_->find(x.data, x.size());
}

void Window::start_all_to_all(const ConstArray& x, const std::vector<int64_t>& sends, const Array& out,
                              const std::vector<int64_t>& receives) {
  PLAIT_CHECK(int(sends.size()) == size_ + 1 && int(receives.size()) == size_ + 1 && rising(sends, x.size()) &&
                  rising(receives, out.size()) && is_bytes(x) && is_bytes(out),
              "window", "all_to_all of ", shape_text(x), " into ", shape_text(out));
  const size_t own = size_t(rank_);
  PLAIT_CHECK(sends[own + 1] - sends[own] == receives[own + 1] - receives[own], "window", "all_to_all sends ",
              sends[own + 1] - sends[own], " bytes to itself and receives ", receives[own + 1] - receives[own]);
  Collective& c = begin(Kind::all_to_all, x.data, const_cast<void*>(out.data));
  c.from = sends, c.to = receives, c.window = cell_, c.said.call = call_of(int(Kind::all_to_all));
  for (size_t rank = 0; rank < size_t(size_); rank++) {
    const int64_t most = std::max(sends[rank + 1] - sends[rank], receives[rank + 1] - receives[rank]);
    c.rounds = std::max(c.rounds, ceil_div(most, c.window));
  }
}

void Window::start_broadcast(const Array& x, int root) {
  PLAIT_CHECK(is_bytes(x) && root >= 0 && root < size_, "window", "broadcast of ", shape_text(x), " from ", root);
  Collective& c = begin(Kind::broadcast, x.data, const_cast<void*>(x.data));
  c.to = {0, x.size()};
  c.root = root, c.window = size_ * cell_, c.heard = rank_ == root;
  c.said.call = call_of(int(Kind::broadcast), DType::uint8, root), c.said.size = x.size();
  c.rounds = std::max<int64_t>(1, ceil_div(x.size(), c.window));
  if (rank_ == root) c.said.source = arena_->find(x.data, x.size());
}

void Window::start_barrier() { begin(Kind::barrier, nullptr, nullptr).said.call = call_of(int(Kind::barrier)); }

// --- advancing -----------------------------------------------------------------------------------

bool Window::advance(int64_t spin_us) {
  if (!now_) return true;
  const int64_t start = microseconds();
  for (;;) {
    const bool moved = step();
    if (done()) {
      next_epoch_ = now_->first + now_->rounds;
      now_.reset();
      return true;
    }
    if (!moved) check_aborted();
    if (microseconds() - start >= (moved ? SLICE_US : spin_us)) return false;
  }
}

bool Window::step() {
  late_ = -1;
  if (!now_->announced && !announce()) return false;
  const bool heard = hear(), staged = stage(), reduced = reduce();
  return read() || reduced || staged || heard;
}

bool Window::reached(Flag kind, int64_t round, int rank) {
  if (flag(rank_, kind * size_ + rank).load(std::memory_order_acquire) >= now_->first + round) return true;
  late_ = rank;
  return false;
}

bool Window::all_reached(Flag kind, int64_t round) {
  for (int rank = 0; rank < size_; rank++)
    if (rank != rank_ && !reached(kind, round, rank)) return false;
  return true;
}

void Window::tell(Flag kind, int64_t round) {
  for (int rank = 0; rank < size_; rank++)
    if (rank != rank_) flag(rank, kind * size_ + rank_).store(now_->first + round, std::memory_order_release);
}

// The peers have read what was said two collectives ago once they have read everything before the last one's rounds.
bool Window::announce() {
  Collective& c = *now_;
  if (!all_reached(READ, -2)) return false;
  c.said.rounds = c.rounds;
  said(rank_) = c.said;
  c.announced = true;
  if (c.kind == Kind::broadcast && rank_ != c.root) c.staged = c.rounds;
  if (c.said.source >= 0) {
    c.staged = c.rounds;
    tell(READY, c.rounds - 1);
  }
  return true;
}

// Before anything of a peer is read, and before it is told so. A broadcast's root hears nobody.
bool Window::hear() {
  Collective& c = *now_;
  if (c.heard) return false;
  if (c.kind == Kind::broadcast) {
    if (rank_ != c.root) {
      if (!reached(READY, 0, c.root)) return false;
      check_said(c.root);
    }
  } else {
    if (!all_reached(READY, 0)) return false;
    for (int rank = 0; rank < size_; rank++) check_said(rank);
    for (int rank = 0; rank < size_; rank++) c.rounds = std::max(c.rounds, said(rank).rounds);
  }
  return c.heard = true;
}

bool Window::stage() {
  Collective& c = *now_;
  const int64_t round = c.staged;
  if (round == c.rounds || (round > 0 && c.kind == Kind::all_to_all && !c.heard) || !all_reached(READ, round - 2)) return false;
  char* to = staging(rank_, round);
  if (c.kind == Kind::reduce && !c.small) {
    stage_slices(round);
  } else if (c.kind == Kind::reduce) {
    copy_bytes(to, c.source, c.spec.nodes[size_t(rank_)] * width() * size_of(c.dtype));
  } else if (c.kind == Kind::all_to_all) {
    for (int rank = 0; rank < size_; rank++) {
      const int64_t start = c.from[size_t(rank)] + round * c.window, stop = c.from[size_t(rank) + 1];
      if (rank != rank_) copy_bytes(to + rank * cell_, c.source + start, std::min(c.window, stop - start));
    }
  } else if (c.kind != Kind::barrier) {
    const int64_t length = c.kind == Kind::broadcast ? c.to[1] : c.to[size_t(rank_) + 1] - c.to[size_t(rank_)];
    copy_bytes(to, c.source + round * c.window, std::min(c.window, length - round * c.window));
  }
  tell(READY, round);
  c.staged++;
  return true;
}

bool Window::reduce() {
  Collective& c = *now_;
  const int64_t round = c.reduced;
  if (c.kind != Kind::reduce || !c.heard || round == c.staged || !all_reached(READY, round)) return false;
  const bool results = c.spec.gather && !c.small;
  if (results && c.said.out < 0 && !all_reached(READ, round - 2)) return false;
  reduce_slice(round);
  tell(results ? REDUCED : READ, round);
  c.reduced++;
  if (!results) c.read = c.reduced;
  return true;
}

bool Window::read() {
  Collective& c = *now_;
  const int64_t round = c.read;
  if (!c.heard) return false;  // a peer that was told READ may say its next word over this one
  if (round == (c.kind == Kind::reduce ? c.reduced : c.staged)) return false;
  if (c.kind == Kind::broadcast) {
    if (rank_ != c.root && !reached(READY, round, c.root)) return false;
    if (rank_ != c.root) read_piece(c.root, round);
  } else {
    if (!all_reached(c.kind == Kind::reduce ? REDUCED : READY, round)) return false;
    for (int rank = 0; rank < size_; rank++) read_piece(rank, round);
  }
  tell(READ, round);
  c.read++;
  return true;
}

// What lies in the arena is read there: it is the caller's again only when all peers have read it.
bool Window::done() {
  const Collective& c = *now_;
  if (!c.announced || !c.heard || c.staged < c.rounds || c.read < c.rounds) return false;
  return (c.said.source < 0 && c.said.out < 0) || all_reached(READ, c.rounds - 1);
}

// --- errors --------------------------------------------------------------------------------------

void Window::check_said(int rank) {
  const Said mine = now_->said, theirs = said(rank);
  if (theirs.call == mine.call && theirs.size == mine.size) return;
  tell(READY, 0);  // so that the others, who read nothing before they have heard all, see it too
  now_.reset();
  throw std::runtime_error("all ranks must call the same collectives in the same order: rank " + std::to_string(rank_) +
                           " is in " + describe(mine.call, mine.size) + ", rank " + std::to_string(rank) + " in " +
                           describe(theirs.call, theirs.size));
}

void Window::abort() {
  for (int rank = 0; rank < size_ && !blocks_.empty(); rank++)
    if (rank != rank_) flag(rank, FLAGS * size_).store(rank_ + 1, std::memory_order_release);
}

void Window::check_aborted() {
  const int64_t by = flag(rank_, FLAGS * size_).load(std::memory_order_acquire);
  if (by == 0) return;
  now_.reset();
  throw std::runtime_error("rank " + std::to_string(by - 1) + " of this node gave up a collective");
}

}  // namespace plait
