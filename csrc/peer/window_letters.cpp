// How a collective begins: every rank says what it is about to do, and hears whether the others mean the same.
#include <algorithm>

#include "peer/window.hpp"

namespace plait {

bool Window::heard_of(int rank, int64_t number) {
  if (letter(room_.rank, rank, number).number.load(std::memory_order_acquire) == number) return true;
  late_ = rank;
  return false;
}

// A letter takes the place of the one before the last: whoever has said its last word has done with that.
bool Window::announce() {
  const Call& c = *now_;
  for (int rank = 0; rank < room_.size; rank++)
    if (rank != room_.rank && !heard_of(rank, number_ - 1)) return false;
  check_unread();
  if (!c.inlined && (c.kind != Call::Kind::broadcast || c.root == room_.rank)) {
    const int64_t sources = c.kind == Call::Kind::reduce ? c.spec.nodes[size_t(room_.rank)] * own_.size
                            : c.kind == Call::Kind::all_gather ? c.to[size_t(room_.rank) + 1] - c.to[size_t(room_.rank)]
                                                               : own_.size;
    if (c.kind != Call::Kind::all_to_all) own_.source = arena_->find(c.source, sources);
    if (c.gathers()) own_.out = arena_->find(c.out, c.width() * size_of(c.out_dtype));
  }
  for (int step = 1; step < room_.size; step++) {  // every rank begins with another
    const int rank = (room_.rank + step) % room_.size;
    Letter& to = letter(rank, room_.rank, number_);
    to.said = own_;
    if (c.kind == Call::Kind::all_to_all) to.said.size = c.from[size_t(rank) + 1] - c.from[size_t(rank)];
    if (c.inlined) write_piece(reinterpret_cast<char*>(&to + 1), rank, 0);
    to.number.store(number_, std::memory_order_release);
  }
  return announced_ = true;
}

// Before anything of a peer is read. The root of a broadcast in letters hears nobody, the others only it (and all of
// them the rest later: check_unread); who refuses its arguments hears whether all do.
bool Window::hear() {
  const Call& c = *now_;
  if (heard_) return false;
  const bool broadcast = c.kind == Call::Kind::broadcast, refused = c.kind == Call::Kind::refused;
  bool differ = false;
  for (int rank = 0; rank < room_.size; rank++) {
    if (rank == room_.rank || (broadcast && c.inlined && rank != c.root)) continue;
    if (!heard_of(rank, number_)) return false;
    if (!refused) check_said(rank);
    differ = differ || !said(rank).agrees(own_);
  }
  if (differ) skip();
  if (c.kind == Call::Kind::all_to_all) check_balance();
  heard_ = true;
  if (c.inlined) {
    if (c.kind == Call::Kind::reduce) reduce_slice(0);
    for (int rank = 0; rank < room_.size && c.kind != Call::Kind::reduce; rank++) move_piece(rank, 0);
    return true;
  }
  if (broadcast) return true;
  direct_ = own_.source >= 0 && (!c.gathers() || own_.out >= 0) && (c.kind != Call::Kind::reduce || c.spec.outer == 1);
  for (int rank = 0; rank < room_.size; rank++) {
    if (rank == room_.rank) continue;
    rounds_ = std::max(rounds_, said(rank).rounds);
    direct_ = direct_ && said(rank).source >= 0 && (!c.gathers() || said(rank).out >= 0);
  }
  if (direct_) rounds_ = windows_ = staged_ = 1, window_ = c.longest;
  return true;
}

// After a broadcast in letters, before the next word: whether others found that all ranks did not mean the same.
void Window::check_unread() {
  if (!unread_) return;
  unread_ = false;
  for (int rank = 0; rank < room_.size; rank++)
    if (rank != room_.rank && !letter(room_.rank, rank, number_ - 1).said.agrees(before_)) return skip();
}

// Ranks that disagree have staged one round at most, which nobody takes, and go on together after it: all of them, or
// what one of them has said of that round would be taken for a later one.
void Window::skip() {
  tell(TAKEN, 0);
  epoch_++;
}

void Window::check_said(int rank) {
  const Said mine = own_, theirs = said(rank);
  if (theirs.agrees(mine)) return;
  skip();
  now_.reset();
  const std::string text = disagreement(room_.rank, mine, rank, theirs);
  if (same_collective(mine, theirs)) throw Disagreement(text);
  throw std::runtime_error(text);
}

// Every rank finds out whether all pairs of ranks mean the same.
void Window::check_balance() {
  const Call c = *now_;
  uint64_t sum = own_.layout;
  std::string pairs;
  for (int rank = 0; rank < room_.size; rank++) {
    if (rank == room_.rank) continue;
    sum += said(rank).layout;
    const int64_t sent = said(rank).size, received = c.to[size_t(rank) + 1] - c.to[size_t(rank)];
    if (sent != received)
      pairs += ": rank " + std::to_string(rank) + " sends " + std::to_string(sent) + " bytes to rank " +
               std::to_string(room_.rank) + ", which receives " + std::to_string(received);
  }
  if (sum == 0) return;
  skip();
  now_.reset();
  throw Disagreement("an all_to_all in which not all ranks receive as much as is sent to them" + pairs);
}

}  // namespace plait
