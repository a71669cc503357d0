// Convolution forward and its gradient of x: both gather pixels of a source image into a destination image.
//
// One destination element is, per leaf of the source's channels, one chain of fused multiply-adds over (kernel row,
// kernel column, channel); leaves are merged by the tree and rounded once. The sum runs over the places that exist:
// padding adds no terms, so an infinite weight spoils only the outputs that have a pixel under it.
#include <algorithm>
#include <vector>

#include "core/ops.hpp"
#include "core/tree.hpp"
#include "cpu/conv_shape.hpp"
#include "cpu/conv_tile.hpp"
#include "cpu/isa.hpp"
#include "cpu/threads.hpp"

namespace plait {
namespace {

thread_local Scratch packed_weights, widened_source, open_tiles;

constexpr int64_t WORTH_A_THREAD = 1 << 18;  // multiply-adds

// Destination places first + step * i (i < count) of one image axis; they meet the kernel at tap + tap_step * j
// (j < taps), where the source place is base + move * i + slide * j.
struct Phase {
  int64_t first, step, count, tap, tap_step, taps, base, move, slide;
};

std::vector<Phase> forward_phases(int64_t out, int64_t kernel, int64_t stride, int64_t padding) {
  return {{0, 1, out, 0, 1, kernel, -padding, stride, 1}};
}

// Pixels of x that are equal modulo the stride meet the same taps.
std::vector<Phase> backward_phases(int64_t length, int64_t kernel, int64_t stride, int64_t padding) {
  std::vector<Phase> phases;
  for (int64_t f = 0; f < std::min(stride, length); f++) {
    const int64_t tap = (f + padding) % stride, taps = (kernel - tap + stride - 1) / stride;
    phases.push_back({f, stride, (length - f + stride - 1) / stride, tap, stride,
                      std::max<int64_t>(taps, 0), (f + padding - tap) / stride, 1, -1});
  }
  return phases;
}

// Consecutive taps of a kernel row that are inside the source for the same pixels [begin, end) of a tile.
struct Run {
  int64_t first, taps, begin, end;
};

// Pixels i .. i + m of a destination row, all of one phase.
struct Tile {
  const Phase* phase;
  int64_t i, m;
  std::vector<Run> runs;
};

std::vector<Tile> tiles_of_row(const std::vector<Phase>& phases, int64_t source_width) {
  std::vector<Tile> tiles;
  for (const Phase& p : phases)
    for (int64_t t = 0; t < tile_count(p.count); t++) {
      Tile tile{&p, tile_begin(p.count, t), 0, {}};
      tile.m = tile_begin(p.count, t + 1) - tile.i;
      for (int64_t j = 0; j < p.taps; j++) {
        int64_t begin = 0, end = tile.m;
        auto place = [&](int64_t m) { return p.base + p.move * (tile.i + m) + p.slide * j; };
        while (begin < end && place(begin) < 0) begin++;
        while (begin < end && place(end - 1) >= source_width) end--;
        if (begin == end) continue;
        auto& runs = tile.runs;
        if (!runs.empty() && runs.back().first + runs.back().taps == j && runs.back().begin == begin &&
            runs.back().end == end)
          runs.back().taps++;
        else
          runs.push_back({j, 1, begin, end});
      }
      tiles.push_back(tile);
    }
  return tiles;
}

struct Gather {
  int64_t batch, source_height, source_width, source_channels, pitch;  // pitch: elements between pixels
  int64_t height, width, channels;  // destination
  int64_t kernel_height, kernel_width;
  int64_t of_channel, of_tap, of_source;  // weight strides: destination channel, tap, source channel
  std::vector<Phase> rows, columns;
  std::vector<int64_t> leaves;

  int64_t panels() const { return (channels + TILE_LANES - 1) / TILE_LANES; }
  int64_t panel_floats() const { return kernel_height * kernel_width * source_channels * TILE_LANES; }
};

template <class T>
PLAIT_INLINE void pack_body(const T* weight, int64_t lanes, int64_t taps, int64_t n, int64_t of_lane,
                            int64_t of_tap, int64_t of_k, float* out) {
  for (int64_t tap = 0; tap < taps; tap++)
    for (int64_t k = 0; k < n; k++, out += TILE_LANES) {
      const T* w = weight + tap * of_tap + k * of_k;
      for (int64_t lane = 0; lane < lanes; lane++) out[lane] = to_float(w[lane * of_lane]);
      for (int64_t lane = lanes; lane < TILE_LANES; lane++) out[lane] = 0;
    }
}
PLAIT_KERNEL(pack, pack_body)

// Weights as panels of TILE_LANES destination channels: (panel, tap, source channel, lane).
template <class T>
const float* pack_weights(const Gather& g, const T* weight) {
  float* packed = packed_weights.get<float>(g.panels() * g.panel_floats());
  parallel_for(g.panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const int64_t lanes = std::min<int64_t>(TILE_LANES, g.channels - p * TILE_LANES);
      pack(weight + p * TILE_LANES * g.of_channel, lanes, g.kernel_height * g.kernel_width,
           g.source_channels, g.of_channel, g.of_tap, g.of_source, packed + p * g.panel_floats());
    }
  });
  return packed;
}

template <class Out>
PLAIT_INLINE void store_body(const float* tile, int64_t m, int64_t lanes, int64_t pitch, Out* out) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t lane = 0; lane < lanes; lane++)
      out[i * pitch + lane] = from_float<Out>(tile[i * TILE_LANES + lane]);
}
PLAIT_KERNEL(store, store_body)

// Destination row i of a phase, with the kernel rows [begin, end) that are inside the source for it.
struct Rows {
  const Phase* phase;
  int64_t i, begin, end;
};

// The chains of one tile over source channels [c, c + n).
void extend_leaf(const Gather& g, const Rows& r, const Tile& t, const float* sample, int64_t first_row,
                 const float* panel, int64_t lanes, int64_t c, int64_t n, float* tile) {
  const Phase& p = *t.phase;
  for (int64_t jh = r.begin; jh < r.end; jh++) {
    const int64_t row = r.phase->base + r.phase->move * r.i + r.phase->slide * jh - first_row;
    const int64_t kh = r.phase->tap + r.phase->tap_step * jh;
    for (const Run& run : t.runs) {
      const int64_t column = p.base + p.move * (t.i + run.begin) + p.slide * run.first;
      const int64_t tap = kh * g.kernel_width + p.tap + p.tap_step * run.first;
      Terms terms;
      terms.a = sample + (row * g.source_width + column) * g.pitch + c;
      terms.a_m = p.move * g.pitch, terms.a_k = 1, terms.a_row = p.slide * g.pitch;
      terms.b = panel + (tap * g.source_channels + c) * TILE_LANES;
      terms.b_k = TILE_LANES, terms.b_row = p.tap_step * g.source_channels * TILE_LANES;
      terms.n = n, terms.rows = run.taps;
      extend_tile(int(run.end - run.begin), lanes, terms, tile + run.begin * TILE_LANES);
    }
  }
}

// The kernel rows that are inside the source for destination row h.
Rows kernel_rows(const Gather& g, int64_t h) {
  const Phase& p = g.rows[size_t(h % g.rows[0].step)];
  Rows r{&p, h / p.step, 0, p.taps};
  auto place = [&](int64_t j) { return p.base + p.move * r.i + p.slide * j; };
  auto outside = [&](int64_t j) { return place(j) < 0 || place(j) >= g.source_height; };
  while (r.begin < r.end && outside(r.begin)) r.begin++;
  while (r.begin < r.end && outside(r.end - 1)) r.end--;
  return r;
}

// Destination rows [begin, end) of one sample.
template <class T, class Out>
void gather_rows(const Gather& g, const T* source, const float* packed, const std::vector<Tile>& tiles,
                 int64_t begin, int64_t end, Out* out) {
  std::vector<Rows> rows;
  int64_t low = g.source_height, high = 0;
  for (int64_t h = begin; h < end; h++) {
    rows.push_back(kernel_rows(g, h));
    const Rows& r = rows.back();
    for (int64_t j : {r.begin, r.end - 1}) {
      if (r.begin == r.end) continue;
      const int64_t row = r.phase->base + r.phase->move * r.i + r.phase->slide * j;
      low = std::min(low, row), high = std::max(high, row + 1);
    }
  }
  const int64_t row_pitch = g.source_width * g.pitch, past_last = g.pitch - g.source_channels;
  const float* sample = nullptr;
  if (low < high)
    sample = widened(source + low * row_pitch, (high - low) * row_pitch - past_last, widened_source);

  constexpr int64_t TILE = TILE_ROWS * TILE_LANES;
  const std::vector<int> merges = tree_merges(int64_t(g.leaves.size()) - 1);
  int64_t open = 0, most = 0;
  for (int count : merges) most = std::max(most, ++open), open -= count;
  float* const bottom = open_tiles.get<float>(most * TILE);
  for (int64_t p = 0; p < g.panels(); p++) {
    const int64_t lanes = std::min<int64_t>(TILE_LANES, g.channels - p * TILE_LANES);
    for (int64_t h = begin; h < end; h++)
      for (const Tile& t : tiles) {
        const int64_t floats = t.m * TILE_LANES;
        float* top = bottom;
        for (size_t leaf = 0; leaf < merges.size(); leaf++, top += TILE) {
          const int64_t c = g.leaves[leaf];
          std::fill(top, top + floats, 0.0f);
          extend_leaf(g, rows[size_t(h - begin)], t, sample, low, packed + p * g.panel_floats(), lanes, c,
                      g.leaves[leaf + 1] - c, top);
          for (int i = 0; i < merges[leaf]; i++, top -= TILE)
            for (int64_t k = 0; k < floats; k++) top[k - TILE] += top[k];
        }
        const int64_t column = t.phase->first + t.phase->step * t.i;
        store(const_cast<const float*>(bottom), t.m, lanes, t.phase->step * g.channels,
              out + (h * g.width + column) * g.channels + p * TILE_LANES);
      }
  }
}

template <class T, class Out>
void gather(const Gather& g, const T* source, const T* weight, Out* out) {
  if (g.batch == 0 || g.channels == 0) return;
  const float* packed = pack_weights(g, weight);
  const std::vector<Tile> tiles = tiles_of_row(g.columns, g.source_width);
  const int64_t row_work = g.width * g.channels * g.kernel_height * g.kernel_width * g.source_channels;
  const int64_t grain = 1 + WORTH_A_THREAD / (row_work + 1);
  parallel_for(g.batch * g.height, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t b = begin / g.height, h = begin % g.height;
      const int64_t stop = std::min(g.height, h + end - begin);
      gather_rows(g, source + b * g.source_height * g.source_width * g.pitch, packed, tiles, h,
                  stop, out + b * g.height * g.width * g.channels);
      begin += stop - h;
    }
  });
}

void run(const char* call, const Gather& g, const ConstArray& source, const ConstArray& weight,
         const Array& out) {
  check_leaves(call, g.leaves, g.source_channels);
  PLAIT_CHECK(out.contiguous(), call, "the output must be contiguous");
  PLAIT_CHECK(source.dtype == weight.dtype && (out.dtype == source.dtype || out.dtype == DType::float32),
              call, "types are ", name_of(source.dtype), " and ", name_of(weight.dtype), ", output ",
              name_of(out.dtype), "; the output may be float32 or of the inputs' common type");
  PLAIT_FLOATS(source.dtype, call, [&](auto zero) {
    using T = decltype(zero);
    if (out.dtype == DType::float32)
      gather(g, source.as<T>(), weight.as<T>(), out.as<float>());
    else
      gather(g, source.as<T>(), weight.as<T>(), out.as<T>());
  });
}

}  // namespace

void conv2d_forward(const ConstArray& x, const ConstArray& weight, bool input_first, int64_t stride,
                    int64_t padding, const std::vector<int64_t>& leaves, const Array& out) {
  const ConvShape s = flattened(
      conv_shape("conv2d_forward", x, weight, input_first, stride, padding, out));
  run("conv2d_forward",
      {s.batch, s.height, s.width, s.inputs, pixel_pitch("conv2d_forward", x), s.out_height, s.out_width, s.outputs, s.kernel_height,
       s.kernel_width, s.of_output, s.of_tap, s.of_input,
       forward_phases(s.out_height, s.kernel_height, stride, padding),
       forward_phases(s.out_width, s.kernel_width, stride, padding), leaves},
      x, weight, out);
}

void conv2d_backward(const ConstArray& grad, const ConstArray& weight, bool input_first, int64_t stride,
                     int64_t padding, const std::vector<int64_t>& leaves, const Array& grad_x) {
  const ConvShape s = flattened(
      conv_shape("conv2d_backward", grad_x, weight, input_first, stride, padding, grad));
  run("conv2d_backward",
      {s.batch, s.out_height, s.out_width, s.outputs, pixel_pitch("conv2d_backward", grad), s.height, s.width, s.inputs, s.kernel_height,
       s.kernel_width, s.of_input, s.of_tap, s.of_output,
       backward_phases(s.height, s.kernel_height, stride, padding),
       backward_phases(s.width, s.kernel_width, stride, padding), leaves},
      grad, weight, grad_x);
}

}  // namespace plait
