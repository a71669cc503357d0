// Which elements a round of a window's collective moves, and where they lie: in the own array, a peer's arena, a cell
// of somebody's staging or a letter. window.cpp says when.
#include <algorithm>

#include "peer/combine.hpp"
#include "peer/window.hpp"

namespace plait {
namespace {

// Where a result lies in the cell from which one part of it came, in bytes: over that part, or behind if types differ.
int64_t result_at(const Call& c, int from, int64_t count) {
  const int64_t item = size_of(c.dtype);
  if (size_of(c.out_dtype) == item) return 0;
  return (c.spec.nodes[size_t(from)] * count * item + ALIGN - 1) / ALIGN * ALIGN;
}

}  // namespace

// What this round makes of rank's slice; where little goes to all, all of it.
Window::Run Window::run_of(int rank, int64_t round) const {
  const Call& c = *now_;
  if (c.inlined && c.spec.gather) return {0, c.width(), 0, 1};
  const int64_t first = c.spec.bounds[size_t(rank)], length = c.spec.bounds[size_t(rank) + 1] - first;
  if (c.inlined) return {first, length, 0, c.spec.outer};
  const int64_t start = round % windows_ * window_, row = round / windows_ * c.rows;
  return {first + start, std::max<int64_t>(std::min(window_, length - start), 0), row,
          std::max<int64_t>(std::min(c.rows, c.spec.outer - row), 0)};
}

// What this rank has for `rank` in this round.
void Window::write_piece(char* to, int rank, int64_t round) const {
  const Call& c = *now_;
  if (c.kind >= Call::Kind::barrier || (c.kind == Call::Kind::broadcast && room_.rank != c.root)) return;
  if (c.kind == Call::Kind::reduce) {
    const int64_t item = size_of(c.dtype);
    const Run run = run_of(rank, round);
    for (int64_t node = 0; node < c.spec.nodes[size_t(room_.rank)]; node++)
      for (int64_t row = run.row; row < run.row + run.rows; row++, to += run.count * item)
        copy_bytes(to, c.source + ((node * c.spec.outer + row) * c.width() + run.start) * item, run.count * item);
    return;
  }
  int64_t start = round * window_, stop = c.to[1];
  if (c.kind == Call::Kind::all_gather) stop = c.to[size_t(room_.rank) + 1] - c.to[size_t(room_.rank)];
  if (c.kind == Call::Kind::all_to_all) start += c.from[size_t(rank)], stop = c.from[size_t(rank) + 1];
  const int64_t most = c.inlined ? stop - start : window_;
  copy_bytes(to, c.source + start, std::min(most, stop - start));
}

// Where rank has the elements of `run`, which is a run of this rank's slice, in one row of one of its nodes.
const char* Window::piece(int rank, int64_t node, int64_t row, const Run& run, int64_t round) const {
  const Call& c = *now_;
  const int64_t item = size_of(c.dtype), whole = ((node * c.spec.outer + row) * c.width() + run.start) * item;
  if (rank == room_.rank) return c.source + whole;
  if (!c.inlined && said(rank).source >= 0) return bases_[size_t(rank)] + said(rank).source + whole;
  const char* staged = c.inlined ? reinterpret_cast<const char*>(&letter(room_.rank, rank, number_) + 1)
                                 : cell(rank, room_.rank, round);
  return staged + (node * run.rows + row - run.row) * run.count * item;
}

void Window::reduce_slice(int64_t round) {
  const Call& c = *now_;
  const Run run = run_of(room_.rank, round);
  const int64_t item = size_of(c.out_dtype), first = c.spec.bounds[size_t(room_.rank)];
  const int64_t length = c.spec.bounds[size_t(room_.rank) + 1] - first;
  if (run.count == 0) return;
  for (int64_t row = run.row; row < run.row + run.rows; row++) {
    parts_.clear(), outs_.clear();
    for (int rank = 0; rank < room_.size; rank++)
      for (int node = 0; node < c.spec.nodes[size_t(rank)]; node++) parts_.push_back(piece(rank, node, row, run, round));
    outs_.push_back(c.out + (c.spec.gather ? run.start : row * length + run.start - first) * item);
    for (int rank = 0; rank < room_.size && c.spec.gather && !c.inlined; rank++) {
      if (rank == room_.rank) continue;
      outs_.push_back(said(rank).out >= 0 ? bases_[size_t(rank)] + said(rank).out + run.start * item
                                          : cell(rank, room_.rank, round) + result_at(c, rank, run.count));
    }
    combine(parts_, c.spec.merges, c.dtype, c.spec.op, c.bias, run.start, c.out_dtype, outs_, run.count);
  }
}

// Rank's slice of a reduction that all ranks want, which it has put into this rank's cell.
void Window::collect_result(int rank, int64_t round) {
  const Run run = run_of(rank, round);
  const int64_t item = size_of(now_->out_dtype);
  copy_bytes(now_->out + run.start * item, cell(room_.rank, rank, round) + result_at(*now_, room_.rank, run.count),
             run.count * item);
}

// What rank has for this one in this round of a collective that only moves.
void Window::move_piece(int rank, int64_t round) {
  const Call& c = *now_;
  const bool broadcast = c.kind == Call::Kind::broadcast, exchange = c.kind == Call::Kind::all_to_all;
  if (c.kind >= Call::Kind::barrier || (broadcast && (rank != c.root || room_.rank == c.root))) return;
  const size_t place = broadcast ? 0 : size_t(rank);
  const int64_t at = round * window_, rest = c.to[place + 1] - c.to[place] - at;
  const int64_t count = c.inlined ? rest : std::min(window_, rest);
  if (count <= 0) return;
  char* to = c.out + c.to[place] + at;
  const char* there = c.source + (exchange ? c.from[place] : 0) + at;
  if (rank != room_.rank) {
    if (c.inlined)
      there = reinterpret_cast<const char*>(&letter(room_.rank, rank, number_) + 1);
    else if (said(rank).source >= 0)
      there = bases_[size_t(rank)] + said(rank).source + at;
    else
      there = cell(rank, exchange ? room_.rank : 0, round);
  }
  if (there != to) copy_bytes(to, there, count);
}

}  // namespace plait
