// Which elements a round of a window's collective moves, and where they lie: in the own array, a peer's arena or its
// staging buffer. window.cpp says when.
#include <algorithm>

#include "peer/window.hpp"

namespace plait {

Window::Run Window::run_of(int rank, int64_t round) const {
  const Collective& c = *now_;
  if (c.small) return {0, width(), 0, 1};
  const int64_t start = c.spec.bounds[size_t(rank)] + round % c.windows * c.window;
  const int64_t row = round / c.windows * c.rows;
  const int64_t count = std::min(c.window, c.spec.bounds[size_t(rank) + 1] - start);
  return {start, std::max<int64_t>(count, 0), row, std::max<int64_t>(std::min(c.rows, c.spec.outer - row), 0)};
}

void Window::stage_slices(int64_t round) {
  const Collective& c = *now_;
  const int64_t item = size_of(c.dtype);
  for (int rank = 0; rank < size_; rank++) {
    if (rank == rank_) continue;
    const Run run = run_of(rank, round);
    char* to = staging(rank_, round) + rank * cell_;
    for (int64_t node = 0; node < c.spec.nodes[size_t(rank_)]; node++)
      for (int64_t row = run.row; row < run.row + run.rows; row++, to += run.count * item)
        copy_bytes(to, c.source + ((node * c.spec.outer + row) * width() + run.start) * item, run.count * item);
  }
}

// Where `rank` has the elements of `run`, which is a run of this rank's slice, in one row of one of its nodes.
const char* Window::part(int rank, int64_t node, int64_t row, const Run& run, int64_t round) const {
  const Collective& c = *now_;
  const int64_t whole = (node * c.spec.outer + row) * width() + run.start;
  if (rank == rank_) return c.source + whole * size_of(c.dtype);
  if (c.small) return staging(rank, round) + whole * size_of(c.dtype);
  if (said(rank).source >= 0) return bases_[size_t(rank)] + said(rank).source + whole * size_of(c.dtype);
  return staging(rank, round) + rank_ * cell_ + (node * run.rows + row - run.row) * run.count * size_of(c.dtype);
}

void Window::reduce_slice(int64_t round) {
  const Collective& c = *now_;
  const Run run = run_of(rank_, round);
  const int64_t item = size_of(c.out_dtype), first = c.spec.bounds[size_t(rank_)];
  const int64_t length = c.spec.bounds[size_t(rank_) + 1] - first;
  if (run.count == 0) return;
  std::vector<const char*> parts;
  for (int64_t row = run.row; row < run.row + run.rows; row++) {
    parts.clear();
    for (int rank = 0; rank < size_; rank++)
      for (int node = 0; node < c.spec.nodes[size_t(rank)]; node++) parts.push_back(part(rank, node, row, run, round));
    char* out = c.out + (c.spec.gather ? run.start : row * length + run.start - first) * item;
    combine(parts, c.spec.merges, c.dtype, c.spec.op, c.bias, run.start, c.out_dtype, out, run.count);
    if (c.spec.gather && !c.small && c.said.out < 0) copy_bytes(result(rank_, round), out, run.count * item);
  }
}

void Window::read_piece(int rank, int64_t round) {
  const Collective& c = *now_;
  if (c.kind == Kind::barrier) return;
  const int64_t at = round * c.window;
  if (c.kind == Kind::reduce) {
    const Run run = run_of(rank, round);
    const int64_t item = size_of(c.out_dtype);
    if (rank == rank_ || run.count == 0) return;
    const char* there = said(rank).out >= 0 ? bases_[size_t(rank)] + said(rank).out + run.start * item : result(rank, round);
    copy_bytes(c.out + run.start * item, there, run.count * item);
    return;
  }
  const size_t place = c.kind == Kind::broadcast ? 0 : size_t(rank);
  const int64_t count = std::min(c.window, c.to[place + 1] - c.to[place] - at);
  if (count <= 0) return;
  char* to = c.out + c.to[place] + at;
  const char* there = staging(rank, round);
  if (c.kind == Kind::all_to_all)
    there = rank == rank_ ? c.source + c.from[place] + at : there + rank_ * cell_;
  else if (rank == rank_)
    there = c.source + at;
  else if (said(rank).source >= 0)
    there = bases_[size_t(rank)] + said(rank).source + at;
  if (there != to) copy_bytes(to, there, count);
}

}  // namespace plait
