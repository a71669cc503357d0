// Who may do what when: flags and rounds (window_letters.cpp has what comes before them). A block holds, line by line, one for the error, the flags that the
// peers write, two letters of each peer, then two staging buffers of a cell per rank.
#include "peer/window.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "core/error.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

constexpr int64_t LINE = 128;            // two cache lines: processors fetch them in pairs
constexpr int64_t MOST_CELL = 128 << 10;  // bytes: what stays in a second-level cache
constexpr int64_t MOST_INSIDE = 1 << 10;
constexpr int64_t SLICE_US = 1000;       // of work, after which advance() returns

int64_t microseconds() {
  using namespace std::chrono;
  return duration_cast<std::chrono::microseconds>(steady_clock::now().time_since_epoch()).count();
}

int64_t lines(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Window::Window(std::shared_ptr<Arena> arena, std::vector<std::shared_ptr<Mapping>> peers, int rank, int64_t staging)
    : arena_(std::move(arena)), peers_(std::move(peers)) {
  const int size = int(peers_.size());
  PLAIT_CHECK(rank >= 0 && rank < size, "window", "rank ", rank, " of ", size);
  const int64_t cell = std::min(lines(std::max<int64_t>(staging / size, 32 * LINE)), MOST_CELL);
  room_ = {rank, size, cell, std::min(cell / 8, MOST_INSIDE)};
  bytes_of_letter_ = lines(int64_t(sizeof(Letter)) + room_.inside);
  const int64_t control = (1 + FLAGS * size) * LINE + 2 * size * bytes_of_letter_;
  offset_ = arena_->allocate(control + 2 * size * cell);
  std::memset(arena_->base() + offset_, 0, size_t(control));
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void Window::connect(const std::vector<int64_t>& offsets) {
  PLAIT_CHECK(int(offsets.size()) == room_.size, "window", offsets.size(), " offsets for ", room_.size, " ranks");
  for (int rank = 0; rank < room_.size; rank++) {
    bases_.push_back(rank == room_.rank ? arena_->base() : peers_[size_t(rank)]->base());
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

Window::Letter& Window::letter(int rank, int from, int64_t number) const {
  char* letters = blocks_[size_t(rank)] + (1 + FLAGS * room_.size) * LINE;
  return *reinterpret_cast<Letter*>(letters + (2 * from + number % 2) * bytes_of_letter_);
}

char* Window::cell(int rank, int of, int64_t round) const {
  char* cells = blocks_[size_t(rank)] + (1 + FLAGS * room_.size) * LINE + 2 * room_.size * bytes_of_letter_;
  return cells + ((epoch_ + round) % 2 * room_.size + of) * room_.cell;
}

// --- one collective ------------------------------------------------------------------------------

void Window::start(std::shared_ptr<const Call> call) {
  PLAIT_CHECK(!blocks_.empty(), "window", "not connected, or closed");
  PLAIT_CHECK(!now_, "window", "a collective is under way");
  now_ = std::move(call);
  before_ = own_, own_ = now_->said;
  window_ = now_->window, windows_ = now_->windows, rounds_ = own_.rounds;
  announced_ = heard_ = direct_ = false;
  staged_ = taken_ = collected_ = 0;
  number_++;
}

bool Window::advance(int64_t spin_us) {
  PLAIT_CHECK(now_, "window", "no collective is under way");
  for (int64_t start = -1;;) {
    const bool moved = step();
    if (done()) {
      end();
      return true;
    }
    if (!moved) check_aborted(), pause();
    if (!moved && spin_us == 0) return false;
    const int64_t now = microseconds();
    if (start < 0) start = now;
    if (now - start >= (moved ? SLICE_US : spin_us)) return false;
  }
}

bool Window::step() {
  late_ = -1;
  if (!announced_ && !announce()) return false;
  const bool heard = hear();
  if (now_->inlined) return heard;
  const bool staged = stage(), taken = take(), collected = collect();
  return heard || staged || taken || collected;
}

void Window::end() {
  unread_ = now_->inlined && now_->kind == Call::Kind::broadcast;
  if (!now_->inlined) epoch_ += rounds_;
  now_.reset();
}

bool Window::reached(Flag kind, int64_t round, int rank) {
  if (flag(room_.rank, 1 + kind * room_.size + rank).load(std::memory_order_acquire) >= epoch_ + round) return true;
  late_ = rank;
  return false;
}

bool Window::all_reached(Flag kind, int64_t round) {
  for (int rank = 0; rank < room_.size; rank++)
    if (rank != room_.rank && !reached(kind, round, rank)) return false;
  return true;
}

void Window::tell(Flag kind, int64_t round) {
  for (int rank = 0; rank < room_.size; rank++)
    if (rank != room_.rank)
      flag(rank, 1 + kind * room_.size + room_.rank).store(epoch_ + round, std::memory_order_release);
}

// A rank whose array lies in its arena tells of every round, too: a result may come back into its cell.
bool Window::stage() {
  const Call& c = *now_;
  const int64_t round = staged_;
  // how many rounds there are is known when all have been heard; only a copy is worth making before
  if (round == rounds_ || (!heard_ && (round > 0 || own_.source >= 0)) || (c.gathers() && round > collected_ + 1)) return false;
  if (c.kind == Call::Kind::broadcast && room_.rank != c.root) return staged_ = rounds_, true;
  if (!all_reached(TAKEN, round - 2)) return false;
  if (own_.source < 0) {
    if (c.kind == Call::Kind::reduce || c.kind == Call::Kind::all_to_all) {
      for (int rank = 0; rank < room_.size; rank++)
        if (rank != room_.rank) write_piece(cell(room_.rank, rank, round), rank, round);
    } else {
      write_piece(cell(room_.rank, 0, round), 0, round);
    }
  }
  tell(READY, round);
  staged_++;
  return true;
}

bool Window::take() {
  const Call& c = *now_;
  const int64_t round = taken_;
  if (!heard_ || round == staged_) return false;
  if (c.kind == Call::Kind::broadcast) {
    if (room_.rank != c.root && !reached(READY, round, c.root)) return false;
    if (room_.rank != c.root) move_piece(c.root, round);
  } else {
    if (!direct_ && !all_reached(READY, round)) return false;
    if (c.kind == Call::Kind::reduce) reduce_slice(round);
    for (int rank = 0; rank < room_.size && c.kind != Call::Kind::reduce; rank++) move_piece(rank, round);
  }
  tell(TAKEN, round);
  taken_++;
  return true;
}

bool Window::collect() {
  if (!now_->gathers() || !heard_ || collected_ == taken_ || !all_reached(TAKEN, collected_)) return false;
  if (own_.out < 0)
    for (int rank = 0; rank < room_.size; rank++)
      if (rank != room_.rank) collect_result(rank, collected_);
  collected_++;
  return true;
}

// What lies in the arena is read there: it is the caller's again only when all peers have read it.
bool Window::done() {
  if (!announced_ || !heard_) return false;
  if (now_->inlined) return true;
  if (now_->gathers()) return collected_ == rounds_;
  return taken_ == rounds_ && (own_.source < 0 || all_reached(TAKEN, rounds_ - 1));
}

// --- errors --------------------------------------------------------------------------------------

void Window::abort() {
  for (int rank = 0; rank < room_.size && !blocks_.empty(); rank++)
    if (rank != room_.rank) flag(rank, 0).store(room_.rank + 1, std::memory_order_release);
}

void Window::check_aborted() {
  const int64_t by = flag(room_.rank, 0).load(std::memory_order_acquire);
  if (by == 0) return;
  now_.reset();
  throw std::runtime_error("rank " + std::to_string(by - 1) + " of this node gave up a collective");
}

}  // namespace plait
