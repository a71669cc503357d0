// matmul of bfloat16 on wgmma: what the host prepares. Operands are read as they lie if TMA can (16-byte alignment; leaves,
// and samples where k starts afresh, that are whole steps of 16 or end where a tensor map ends); else from a copy.
#include "cuda/matmul_sm90.hpp"

#include <algorithm>

#include "cuda/check.hpp"
#include "cuda/launch.cuh"
#include "cuda/matmul_sm90_kernel.cuh"
#include "cuda/matmul_sm90_pack.cuh"
#include "cuda/tensor_map.hpp"

namespace plait {
namespace {

int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// How k is walked: as it lies, in samples of `period`, or from a copy in which each part is padded to whole steps.
struct Depth {
  std::vector<int64_t> ends;  // of the leaves, in the copy if packed
  int64_t k, period;
  bool packed;
};

Depth depth_of(const MatmulProblem& p) {
  Depth d = {{p.leaves->begin() + 1, p.leaves->end()}, p.k, 0, false};
  const int64_t period = p.period % STEP_K ? p.period : 0;  // whole steps go on as if there were none
  bool whole = true, samples = p.transpose_a && !p.transpose_b && period && p.k % period == 0;
  int64_t begin = 0;
  for (int64_t end : d.ends) {
    whole = whole && ((end - begin) % STEP_K == 0 || end == p.k) && (!period || end - begin <= period);
    samples = samples && begin % period == 0 && end % period == 0;
    begin = end;
  }
  if (whole) return d;
  if (samples) return d.period = period, d;
  d.packed = true, d.k = begin = 0;
  for (int64_t& end : d.ends) {
    const int64_t length = end - begin;
    begin = end;
    end = d.k += packed_length(length, period);
  }
  return d;
}

// One operand: `rows` of `columns` as it is stored; k runs along the rows, or along the columns if k_major.
struct WgmmaOperand {
  const bfloat16* data;
  int64_t stride, other;  // other: m or n
  bool k_major, copied;
  int64_t k;
  int64_t rows() const { return k_major ? other : k; }
  int64_t columns() const { return k_major ? k : other; }
};

WgmmaOperand operand(const bfloat16* data, int64_t stride, int64_t other, bool k_major, const Depth& depth, int64_t k) {
  WgmmaOperand x = {data, stride, other, k_major, depth.packed, k};
  if (x.rows() <= 1) x.stride = round_up(x.columns(), 8);
  x.copied = k > 0 && (depth.packed || reinterpret_cast<uintptr_t>(data) % 16 || x.stride % 8 || x.stride < x.columns());
  if (!x.copied) return x;
  x.stride = stride, x.k = depth.k;  // k and columns() are the copy's from here on
  return x;
}

int64_t copy_bytes(const WgmmaOperand& x) { return x.copied ? round_up(x.rows() * round_up(x.columns(), 8) * 2, 256) : 0; }

void copy(const MatmulProblem& p, const Depth& depth, WgmmaOperand& x, bfloat16* to) {
  PackArguments g = {x.data, x.stride, to, round_up(x.columns(), 8), !x.k_major, x.other, 0, p.k, 0, x.k, p.k};
  const auto run = [&] {
    if (g.packed == 0) return;
    launch(PLAIT_AT("matmul: copy of an operand"), pack_kernel, {blocks_for(g.packed * g.other, 256), 256}, g);
  };
  if (depth.packed) {
    for (size_t i = 0; i + 1 < p.leaves->size(); i++) {
      g.begin = (*p.leaves)[i], g.end = (*p.leaves)[i + 1];
      g.to_begin = i ? depth.ends[i - 1] : 0, g.packed = depth.ends[i] - g.to_begin;
      g.period = p.period && p.period < g.end - g.begin ? p.period : g.end - g.begin;
      run();
    }
  } else {
    run();
  }
  x.data = to, x.stride = g.to_stride;
}

CUtensorMap operand_map(const WgmmaOperand& x, const Depth& depth, int rows, int k) {
  if (x.k_major) return tensor_map({x.data, {x.k, x.other, 1}, {x.stride, x.stride}, {TILE_K, rows, 1}});
  const int64_t sample = depth.period ? depth.period : x.k;
  return tensor_map({x.data, {x.other, sample, x.k / sample}, {x.stride, sample * x.stride}, {BOX, k, 1}});
}

// The stack of leaves: which sums are merged again in this call, and how many of them are open at once.
std::vector<LeafStep> leaf_steps(const MatmulProblem& p, const Depth& depth, int& levels) {
  std::vector<LeafStep> steps;
  std::vector<size_t> open;
  levels = 0;
  for (size_t i = 0; i < depth.ends.size(); i++) {
    steps.push_back({int(depth.ends[i]), int16_t((*p.merges)[i]), 0});
    for (int merge = 0; merge < (*p.merges)[i] && !open.empty(); merge++) {
      steps[open.back()].pending = 1;
      open.pop_back();
      levels = std::max(levels, int(open.size()) + 1);
    }
    open.push_back(i);
  }
  return steps;
}

using Kernel = void (*)(WgmmaArguments, Alone);

template <int N>
Kernel kernel_of(bool k_major_a, bool k_major_b) {
  if (k_major_a) return k_major_b ? wgmma_kernel<N, true, true> : wgmma_kernel<N, true, false>;
  return k_major_b ? wgmma_kernel<N, false, true> : wgmma_kernel<N, false, false>;
}

template <int N>
void start(const WgmmaCall& call) {
  launch(PLAIT_AT("matmul: wgmma"), kernel_of<N>(call.k_major_a, call.k_major_b),
         {unsigned(call.blocks), WGMMA_THREADS, WgmmaShared<N>::BYTES, unsigned(call.arguments.cluster)}, call.arguments,
         Alone());
}

}  // namespace

bool wgmma_available() { return device_properties().major == 9; }

void matmul_wgmma(const MatmulProblem& p) { matmul_wgmma(p, wgmma_plan(p, device_properties().multiprocessors)); }

WgmmaCall wgmma_call(const MatmulProblem& p, const WgmmaPlan& plan, int64_t items) {
  const Depth depth = depth_of(p);
  PLAIT_CHECK(std::max({p.m, p.n, depth.k}) < (int64_t(1) << 31) - 256 && p.leaves->size() < (1u << 24), "matmul",
              "sizes must be below 2^31, got m ", p.m, ", n ", p.n, ", k ", p.k);
  WgmmaOperand a = operand(p.a, p.row_stride_a, p.m, !p.transpose_a, depth, p.k);
  WgmmaOperand b = operand(p.b, p.row_stride_b, p.n, p.transpose_b, depth, p.k);

  WgmmaArguments g = {};
  g.m = int(p.m), g.n = int(p.n), g.cluster = plan.cluster, g.period = int(depth.period);
  g.tile_rows = int((p.m + TILE_M * plan.cluster - 1) / (TILE_M * plan.cluster));
  g.tile_columns = int((p.n + plan.columns - 1) / plan.columns);
  const std::vector<LeafStep> steps = leaf_steps(p, depth, g.levels);
  g.leaves = int(steps.size()), g.slot = int(p.slot), g.accumulate = p.accumulate, g.apart = plan.apart;
  if (!items) items = int64_t(g.tile_rows) * g.tile_columns * (plan.apart ? g.leaves : 1);
  PLAIT_CHECK(items < (int64_t(1) << 31), "matmul", p.m, " x ", p.n, " in ", g.leaves, " leaves are too many tiles");
  g.items = int(items);
  const int blocks = int(std::min(items, int64_t(device_properties().multiprocessors) / plan.cluster)) * plan.cluster;
  g.bias = p.bias, g.bias_dtype = p.bias_dtype, g.out_dtype = p.out_dtype;
  g.data = p.out, g.row_stride = p.row_stride_out, g.slot_stride = p.slots_stride;
  const uintptr_t out = reinterpret_cast<uintptr_t>(p.out);
  const int64_t out_stride = p.m == 1 ? round_up(p.n, 8) : p.row_stride_out;
  g.after = after_call(p);
  const bool gelu = p.after.kind == After::gelu;
  g.by_tma = p.out_dtype == DType::bfloat16 && out % 16 == 0 && out_stride % 8 == 0 && !plan.apart &&
             (!gelu || g.after.other.packs);
  g.paired = p.out_dtype == DType::float32 && out % 8 == 0 && p.row_stride_out % 2 == 0 && p.slots_stride % 2 == 0;
  g.stack_stride = round_up(p.n, 2);

  const int64_t a_bytes = copy_bytes(a), b_bytes = copy_bytes(b);
  const int64_t stack_bytes =
      plan.apart ? g.leaves * p.m * g.stack_stride * 4 : int64_t(blocks) * g.levels * TILE_M * plan.columns * 4;
  const int64_t steps_bytes = g.leaves > STEPS_INSIDE ? g.leaves * int64_t(sizeof(LeafStep)) : 0;
  unsigned char* const memory = scratch<unsigned char>(a_bytes + b_bytes + round_up(stack_bytes, 256) + steps_bytes);
  if (a.copied) copy(p, depth, a, reinterpret_cast<bfloat16*>(memory));
  if (b.copied) copy(p, depth, b, reinterpret_cast<bfloat16*>(memory + a_bytes));
  g.stack = reinterpret_cast<float*>(memory + a_bytes + b_bytes);
  if (steps_bytes) {
    LeafStep* const to = reinterpret_cast<LeafStep*>(memory + a_bytes + b_bytes + round_up(stack_bytes, 256));
    for (int i = 0; i < g.leaves; i += 256) {
      StepsChunk chunk = {std::min(256, g.leaves - i), {}};
      std::copy_n(steps.begin() + i, chunk.count, chunk.steps);
      launch(PLAIT_AT("matmul: leaves"), steps_kernel, {1, 256}, chunk, to + i);
    }
    g.steps_outside = to;
  } else {
    std::copy(steps.begin(), steps.end(), g.steps);
  }
  if (depth.k > 0) {
    g.a = operand_map(a, depth, TILE_M, TILE_K);
    g.b = operand_map(b, depth, plan.columns / plan.cluster, TILE_K / plan.cluster);
  }
  const auto boxes_of = [&](const void* data, int64_t stride) {
    return tensor_map({data, {p.n, p.m, 1}, {stride, stride}, {BOX, BOX, 1}});
  };
  if (g.by_tma) g.out = boxes_of(p.out, out_stride);
  if (g.by_tma && gelu) g.gelu = boxes_of(p.after.data, p.m == 1 ? out_stride : p.after.stride);
  return {g, a.k_major, b.k_major, blocks};
}

void matmul_wgmma(const MatmulProblem& p, const WgmmaPlan& plan) {
  const WgmmaCall call = wgmma_call(p, plan);
  switch (plan.columns) {
    case 256: start<256>(call); break;
    case 192: start<192>(call); break;
    case 128: start<128>(call); break;
    case 64: start<64>(call); break;
    default: fail("matmul", "no tile of ", plan.columns, " columns");
  }
  if (plan.apart)
    launch(PLAIT_AT("matmul: merge of leaves"), merge_leaves_kernel, {blocks_for(p.m * p.n, 256), 256}, call.arguments);
}

}  // namespace plait
