// Elementwise ops over strided arrays: the runs of core/runs.hpp, cut into pieces of at most 8192
// elements, which threads share.
#pragma once
#include "core/runs.hpp"
#include "cpu/threads.hpp"

namespace plait {

template <int N>
struct Piece {
  int64_t offset[N];
  int64_t length;
};

// body(const Piece<N>&)
template <int N, class Body>
void parallel_runs(const Runs<N>& runs, const Body& body) {
  constexpr int64_t PIECE = 8192;
  const int64_t per_run = (runs.length + PIECE - 1) / PIECE;
  const int64_t grain = 1 + 16384 / std::max<int64_t>(1, std::min(PIECE, runs.length));
  parallel_for(runs.count * per_run, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      Piece<N> p = {};
      const int64_t start = i % per_run * PIECE;
      p.length = std::min(PIECE, runs.length - start);
      runs.offsets(i / per_run, p.offset);
      for (int64_t& offset : p.offset) offset += start;
      body(p);
    }
  });
}

}  // namespace plait
