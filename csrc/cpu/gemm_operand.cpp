// Packs the runs of a pass.
#include "cpu/gemm_operand.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace plait {
namespace {

thread_local Scratch block_memory;

constexpr int64_t BLOCK = 16 * 1024;  // elements put together at once

struct Piece {
  int64_t at, length;
};

// Columns [first, first + count) as pieces of adjacent channels.
std::vector<Piece> pieces_of(const Unfolded& u, int64_t first, int64_t count) {
  std::vector<Piece> found;
  const int64_t taps = int64_t(u.taps.size()), end = first + count;
  for (size_t leaf = 0; leaf + 1 < u.leaves.size(); leaf++) {
    const int64_t channels = u.leaves[leaf + 1] - u.leaves[leaf];
    for (int64_t t = 0; t < taps; t++) {
      const int64_t begin = taps * u.leaves[leaf] + t * channels;
      const int64_t from = std::max(first, begin), to = std::min(end, begin + channels);
      if (from >= to) continue;
      const int64_t at = u.taps[size_t(t)] + (u.leaves[leaf] + from - begin) * u.channel_stride;
      if (u.channel_stride == 1 && !found.empty() && found.back().at + found.back().length == at)
        found.back().length += to - from;  // the next pixel of a row
      else
        found.push_back({at, to - from});
    }
  }
  return found;
}

// Rows of `pieces`, row_stride apart in out, the last unit of each filled up with zeros.
template <class T>
PLAIT_INLINE void copy_rows(const T* x, const int64_t* rows, int64_t count, const Piece* pieces,
                            int64_t n, int64_t row_stride, int64_t filled, T* out) {
  constexpr int64_t LINE = 64 / sizeof(T);
  for (int64_t r = 0; r < count; r++, out += row_stride) {
    T* to = out;
    for (int64_t p = 0; p < n; p++) {
      const T* from = x + rows[r] + pieces[p].at;
      const int64_t length = pieces[p].length;
      int64_t i = 0;
      for (; i + LINE <= length; i += LINE) std::memcpy(to + i, from + i, 64);
      for (; i + 8 <= length; i += 8) std::memcpy(to + i, from + i, 8 * sizeof(T));
      for (; i < length; i++) to[i] = from[i];
      to += length;
    }
    for (int64_t i = to - out; i < filled; i++) out[i] = T{};
  }
}
PLAIT_KERNEL(put_rows, copy_rows)

// x(w, k) at data[w * wide_stride + k * depth_stride], or, if places, at data[places[k] + w].
template <class T>
struct Strided {
  const T* data;
  const int64_t* places;
  int64_t wide_stride, depth_stride;
};

void pack_block(const Strided<float>& x, int64_t wide, int64_t depth, int64_t panel_stride,
                int panel, bool, Packing packing, float* out) {
  if (x.places)
    pack_panels(x.data, x.places, wide, depth, panel, panel_stride, packing, out);
  else
    pack_panels(x.data, x.wide_stride, x.depth_stride, wide, depth, panel, panel_stride, packing,
                out);
}
void pack_block(const Strided<bfloat16>& x, int64_t wide, int64_t depth, int64_t panel_stride,
                int panel, bool columns, Packing packing, float* out) {
  const bool rows = packing == Packing::blocks && !columns;
  if (x.places && rows)
    pack_rows(x.data, x.places, wide, depth, panel_stride, out);
  else if (x.places)
    pack_panels(x.data, x.places, wide, depth, panel, panel_stride, packing, out);
  else if (rows)
    pack_rows(x.data, x.wide_stride, x.depth_stride, wide, depth, panel_stride, out);
  else
    pack_panels(x.data, x.wide_stride, x.depth_stride, wide, depth, panel, panel_stride, packing,
                out);
}

std::vector<int64_t> places_of(const Rows& rows, int64_t first, int64_t count) {
  std::vector<int64_t> places(static_cast<size_t>(count));
  Row(rows, first).fill(count, places.data());
  return places;
}

// Where what is adjacent lies along `wide`: the rows of u, or if its rows are wide its columns.
template <class T>
void pack_listed(const Unfolded& u, const T* data, bool rows_wide, bool columns, int64_t k,
                 int64_t depth, int64_t first, int64_t wide, int64_t panel_stride,
                 const TileKernel& kernel, float* out) {
  const int panel = columns ? kernel.columns : kernel.rows;
  std::vector<int64_t> places;
  if (rows_wide) {
    data += Row(u.rows, first).next();
    for (const Piece& piece : pieces_of(u, k, depth))
      for (int64_t c = 0; c < piece.length; c++) places.push_back(piece.at + c * u.channel_stride);
  } else {
    places = places_of(u.rows, k, depth);
    const std::vector<Piece> pieces = pieces_of(u, first, wide);
    assert(pieces.size() == 1);  // of one tap
    data += pieces[0].at;
  }
  pack_block({data, places.data(), 0, 0}, wide, depth, panel_stride, panel, columns, kernel.packing,
             out);
}

// Where they lie along k: put together in a block that a near cache holds, then packed.
template <class T>
void pack_put(const Unfolded& u, const T* data, bool columns, int64_t k, int64_t depth,
              int64_t first, int64_t wide, int64_t panel_stride, const TileKernel& kernel,
              float* out) {
  const int panel = columns ? kernel.columns : kernel.rows;
  const std::vector<Piece> pieces = pieces_of(u, k, depth);
  const std::vector<int64_t> places = places_of(u.rows, first, wide);
  const int64_t step = std::max<int64_t>(1, BLOCK / (depth + 1) / panel) * panel;
  for (int64_t w = 0; w < wide; w += step, out += step / panel * panel_stride) {
    const int64_t here = std::min(step, wide - w);
    T* block = block_memory.get<T>(here * depth);
    put_rows(data, places.data() + w, here, pieces.data(), int64_t(pieces.size()), depth, depth,
             block);
    pack_block({block, nullptr, depth, 1}, here, depth, panel_stride, panel, columns,
               kernel.packing, out);
  }
}

template <class T>
void pack_run(const Operand& x, const T* data, bool columns, int64_t k, int64_t depth,
              int64_t first, int64_t wide, int64_t panel_stride, const TileKernel& kernel,
              float* out) {
  if (!x.unfolded) {
    const int panel = columns ? kernel.columns : kernel.rows;
    const int64_t wide_stride = columns ? x.column_stride : x.row_stride;
    const int64_t depth_stride = columns ? x.row_stride : x.column_stride;
    const Strided<T> part{data + first * wide_stride + k * depth_stride, nullptr, wide_stride,
                          depth_stride};
    return pack_block(part, wide, depth, panel_stride, panel, columns, kernel.packing, out);
  }
  const Unfolded& u = *x.unfolded;
  const bool rows_wide = columns == x.transposed;
  if (rows_wide && u.channel_stride == 1)
    pack_put(u, data, columns, k, depth, first, wide, panel_stride, kernel, out);
  else
    pack_listed(u, data, rows_wide, columns, k, depth, first, wide, panel_stride, kernel, out);
}

// Unfolded rows whose k are adjacent stay as they are, which costs less than turning them. (Tiles go
// through panels up to 8 % faster, so the rows of a matrix, used more often, are turned.)
bool copied(const Operand& x, Packing packing) {
  return x.unfolded && !x.transposed && x.unfolded->channel_stride == 1 &&
         (x.dtype == DType::float32 ? packing == Packing::floats : packing == Packing::pairs);
}

template <class T>
void copy_run(const Unfolded& u, const T* data, const Run& run, int64_t first, int64_t wide,
              int64_t row_floats, float* out) {
  constexpr int64_t PER_FLOAT = 4 / sizeof(T);
  const std::vector<Piece> pieces = pieces_of(u, run.k, run.length);
  const std::vector<int64_t> places = places_of(u.rows, first, wide);
  put_rows(data, places.data(), wide, pieces.data(), int64_t(pieces.size()),
           row_floats * PER_FLOAT, (run.length + PER_FLOAT - 1) / PER_FLOAT * PER_FLOAT,
           reinterpret_cast<T*>(out));
}

// One tap whose rows run along k, all of a few channels in one panel.
bool in_line(const Operand& x, int64_t wide, Packing packing) {
  constexpr int64_t MOST = 128;  // more would be too far apart from k to k
  return x.unfolded && x.transposed && packing != Packing::blocks && wide <= MOST;
}

template <class T>
void line_run(const Operand& x, const T* data, const Run& run, int64_t first, int64_t wide,
              int64_t panel, Packing packing, float* out) {
  const std::vector<int64_t> places = places_of(x.unfolded->rows, run.k, run.length);
  pack_panel(data + x.unfolded->taps[0] + first, places.data(), wide, run.length, panel, packing,
             out);
}

}  // namespace

Packed pack(const Operand& x, bool columns, const Pass& pass, int64_t first, int64_t wide,
            const TileKernel& kernel, Scratch& scratch) {
  const int64_t side = columns ? kernel.columns : kernel.rows, panels = (wide + side - 1) / side;
  Packed p{nullptr, pass.depth * side, 1, side};
  const bool rows = !columns && copied(x, kernel.packing);
  if (rows) {  // an odd number of cache lines: rows must not meet in a few sets
    p.row = ((pass.depth + 15) / 16 | 1) * 16;
    p.step = 1, p.panel = side * p.row;
  }
  const bool line = !columns && !rows && in_line(x, wide, kernel.packing);
  if (line) p.step = (wide + 7) / 8 * 8, p.panel = side;
  float* out = scratch.get<float>(line ? pass.depth * p.step : panels * p.panel);
  p.data = out;
  for (const Run& run : pass.runs) {
    auto from = [&](const auto* data) {
      if (rows)
        copy_run(*x.unfolded, data, run, first, wide, p.row, out + run.at);
      else if (line)
        line_run(x, data, run, first, wide, p.step, kernel.packing, out + run.at * p.step);
      else
        pack_run(x, data, columns, run.k, run.length, first, wide, p.panel, kernel,
                 out + run.at * side);
    };
    if (x.dtype == DType::float32)
      from(static_cast<const float*>(x.data));
    else
      from(static_cast<const bfloat16*>(x.data));
  }
  return p;
}

}  // namespace plait
