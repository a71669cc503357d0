// Rows of a table by token, and their gradients: tokens are sorted by row, and a block adds up those of one row, in their
// order: per row and leaf one chain, the CPU's bits, without atomics. What a row needs of the stack is in shared memory.
#include "core/embedding.hpp"
#include "core/ops.hpp"
#include "cuda/pack.cuh"
#include "cuda/shared.cuh"
#include "cuda/sort.cuh"
#include "cuda/warp.cuh"

namespace plait {
namespace {

constexpr int FORWARD_WARPS = 4;

// A warp copies a row, of `units` units.
template <class Unit>
__global__ void __launch_bounds__(FORWARD_WARPS* WARP)
    forward_kernel(const int32_t* tokens, int64_t count, const Unit* weight, int64_t first_row, int64_t rows, int64_t units,
                   Unit* out) {
  const int64_t i = int64_t(blockIdx.x) * FORWARD_WARPS + threadIdx.x / WARP;
  if (i >= count) return;
  const int64_t row = tokens[i] - first_row;
  const bool here = row >= 0 && row < rows;
#pragma unroll 4
  for (int64_t k = threadIdx.x % WARP; k < units; k += WARP) out[i * units + k] = here ? weight[row * units + k] : Unit{};
}

// Tokens of other shards get the key `rows`, which comes last.
__global__ void __launch_bounds__(256)
    keys_kernel(const int32_t* tokens, int64_t count, int64_t first_row, int64_t rows, Pairs pairs) {
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= count) return;
  const int64_t row = tokens[i] - first_row;
  pairs.keys[i] = int32_t(row >= 0 && row < rows ? row : rows);
  pairs.positions[i] = int32_t(i);
}

// The first of n sorted values that is not below x.
template <class T>
__device__ __forceinline__ int64_t lower_bound(const T* values, int64_t n, int64_t x) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (values[middle] < x)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

__global__ void __launch_bounds__(256) check_rows_kernel(const int64_t* visited, int64_t visits, const int32_t* keys,
                                                         int64_t count, int64_t rows, uint32_t* fault) {
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
  bool good = true;
  if (i < visits) good = visited[i] >= 0 && visited[i] < rows && (i == 0 || visited[i - 1] < visited[i]);
  if (i < count && keys[i] < rows) {
    const int64_t at = lower_bound(visited, visits, keys[i]);
    good = good && at < visits && visited[at] == keys[i];
  }
  if (!good) atomicCAS(fault, uint32_t(Fault::none), uint32_t(Fault::rows_wrong));
}

constexpr int MOST_LEAVES = 512;

struct Leaves {
  int32_t end[MOST_LEAVES];  // the token after a leaf's last
  int8_t merges[MOST_LEAVES];
  int count;
};
struct Stack {  // slots of (V, C)
  float* data;
  int64_t stride;
  int slot, low, high;
  bool accumulate, every_row;
};
struct Sorted {
  const int32_t *keys, *positions;
  int64_t count;
};

constexpr int TOGETHER = 8;  // tokens whose gradients are loaded at once

// Adds the gradients of the tokens from `next` on that are of this row and before `end`. Whole warps call it; threads that are
// not `active` have no channels.
template <int WIDTH, class T>
__device__ __forceinline__ bool add_tokens(const Sorted& sorted, int64_t row, int64_t end, const T* grad, int64_t channels,
                                           bool active, int64_t& next, float (&sum)[WIDTH]) {
  const int lane = int(threadIdx.x) % WARP;
  bool some = false;
  for (;;) {
    const int64_t i = next + lane;
    int32_t position = 0;
    bool mine = i < sorted.count && sorted.keys[i] == row;
    if (mine) position = sorted.positions[i], mine = position < end;
    const int found = __popc(__ballot_sync(ALL_LANES, mine));  // the first of the lanes
    for (int k = 0; k < found; k += TOGETHER) {
      float v[TOGETHER][WIDTH];
#pragma unroll
      for (int j = 0; j < TOGETHER; j++) {
        const int64_t from = __shfl_sync(ALL_LANES, position, (k + j) % WARP);
        if (k + j < found && active) load_pack(grad + from * channels, v[j]);
      }
#pragma unroll
      for (int j = 0; j < TOGETHER; j++)
        if (k + j < found && active)
#pragma unroll
          for (int c = 0; c < WIDTH; c++) sum[c] += v[j][c];
    }
    some = some || found;
    next += found;
    if (found < WARP) return some;
  }
}

// Block x takes the x-th visited row, or without `visited` (visits of them) row x if every_row, or the row of the x-th token
// if it is the first of that row; block y a strip of channels.
template <int WIDTH, class T>
__global__ void __launch_bounds__(256) rows_kernel(Sorted sorted, const int64_t* visited, const T* grad, Leaves leaves,
                                                   int64_t rows, int64_t channels, Stack stack) {
  int64_t row, next = blockIdx.x;
  if (stack.every_row) {
    row = visited ? visited[blockIdx.x] : int64_t(blockIdx.x);
    if (row < 0 || row >= rows) return;
    next = lower_bound(sorted.keys, sorted.count, row);
  } else {
    row = sorted.keys[next];
    if (row >= rows || (next > 0 && sorted.keys[next - 1] == row)) return;
  }
  const int64_t channel = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * WIDTH;
  const bool active = channel < channels;
  float* const out = stack.data + row * channels + channel;
  float* const kept = dynamic_shared<float>() + threadIdx.x * WIDTH;  // slot s at (s - low) * pitch
  const int pitch = int(blockDim.x) * WIDTH;
  uint64_t holds = 0;                         // bit s - low: slot s has a sum. A slot without a term is nothing, not zero
  int loaded = stack.slot, top = stack.slot;  // slots below `loaded` are still in out alone
  for (int leaf = 0; leaf < leaves.count; leaf++, top++) {
    float sum[WIDTH] = {};
    bool some = leaf == 0 && stack.accumulate;
    if (some && active) load_pack(out + top * stack.stride, sum);
    some = add_tokens(sorted, row, leaves.end[leaf], grad + channel, channels, active, next, sum) || some;
    for (int m = 0; m < leaves.merges[leaf]; m++) {
      float lower[WIDTH] = {};
      top--;
      bool held = true;
      if (top < loaded) {
        loaded = top;
        if (active) load_pack(out + top * stack.stride, lower);
      } else {
        held = holds >> (top - stack.low) & 1;
        load_pack(kept + (top - stack.low) * pitch, lower);
      }
#pragma unroll
      for (int c = 0; c < WIDTH; c++) sum[c] = some ? held ? lower[c] + sum[c] : sum[c] : lower[c];
      some = some || held;
    }
    store_pack(kept + (top - stack.low) * pitch, sum);
    const uint64_t bit = uint64_t(1) << (top - stack.low);
    holds = some ? holds | bit : holds & ~bit;
  }
  for (int s = stack.low; s < stack.high; s++) {
    if (!active || !(stack.every_row || holds >> (s - stack.low) & 1)) continue;
    float sum[WIDTH];
    load_pack(kept + (s - stack.low) * pitch, sum);
    store_pack(out + s * stack.stride, sum);
  }
}

unsigned blocks_of(int64_t work, int64_t threads) {
  return unsigned((work + threads - 1) / threads);
}

template <class Unit>
void copy_rows(const ConstArray& tokens, const ConstArray& weight, int64_t first_row, const Array& out) {
  const int64_t count = tokens.shape[0], units = weight.shape[1] * size_of(weight.dtype) / int64_t(sizeof(Unit));
  launch(PLAIT_AT("embedding_forward"), forward_kernel<Unit>, {blocks_of(count, FORWARD_WARPS), FORWARD_WARPS * WARP},
         tokens.as<int32_t>(), count, static_cast<const Unit*>(weight.data), first_row, weight.shape[0], units,
         static_cast<Unit*>(const_cast<void*>(out.data)));
}

}  // namespace

void embedding_forward(const ConstArray& tokens, const ConstArray& weight, int64_t first_row, const Array& out) {
  check_embedding_forward(tokens, weight, out);
  const int64_t bytes = weight.shape[1] * size_of(weight.dtype);
  if (pack_aligned<uint8_t>(weight.data, bytes, 16) && pack_aligned<uint8_t>(out.data, bytes, 16))
    copy_rows<uint4>(tokens, weight, first_row, out);
  else if (weight.dtype == DType::float32)
    copy_rows<uint32_t>(tokens, weight, first_row, out);
  else
    copy_rows<uint16_t>(tokens, weight, first_row, out);
}

void embedding_backward(const ConstArray& tokens, const ConstArray& grad, int64_t first_row, const std::vector<int64_t>& leaves,
                        const std::vector<int>& merges, int64_t slot, bool accumulate, const std::optional<ConstArray>& visited,
                        const Array& grad_weight) {
  const At at = PLAIT_AT("embedding_backward");
  check_embedding_backward(tokens, grad, leaves, merges, slot, accumulate, visited, grad_weight);
  const int64_t count = tokens.shape[0], rows = grad_weight.shape[1], channels = grad_weight.shape[2];
  PLAIT_CHECK(merges.size() <= size_t(MOST_LEAVES), at.kernel, "takes at most ", MOST_LEAVES, " leaves at once on a GPU, got ",
              merges.size());
  PLAIT_CHECK(count < (int64_t(1) << 31) && rows < (int64_t(1) << 31), at.kernel, "at most 2^31 - 1 tokens and rows, got ",
              count, " and ", rows);
  const EmbeddingProgram program = embedding_program(merges, slot, accumulate);
  float* out = grad_weight.as<float>();
  const int64_t stride = grad_weight.strides[0];
  for (int64_t fresh : program.fresh) {
    // Where every row is visited it is written too; what held something before has it in rows that are visited.
    if (program.every_row && (!visited || fresh < slot + accumulate)) continue;
    PLAIT_CUDA(cudaMemsetAsync(out + fresh * stride, 0, size_t(rows * channels) * sizeof(float), stream()));
  }

  int32_t* memory = scratch<int32_t>(4 * count + sort_scratch(count));
  const Pairs pairs{memory, memory + count}, other{memory + 2 * count, memory + 3 * count};
  launch(at, keys_kernel, {blocks_of(count, 256), 256}, tokens.as<int32_t>(), count, first_row, rows, pairs);
  const Pairs found = sort_pairs(at, pairs, other, count, rows, memory + 4 * count);
  const Sorted sorted{found.keys, found.positions, count};
  const int64_t* const chosen = visited && program.every_row ? visited->as<int64_t>() : nullptr;
  const int64_t visits = chosen ? visited->shape[0] : program.every_row ? rows : count;
  if (chosen)
    launch(at, check_rows_kernel, {blocks_of(std::max(visits, count), 256), 256}, chosen, visits, sorted.keys, count, rows,
           fault_word());

  Leaves parts = {};
  parts.count = int(merges.size());
  std::copy(leaves.begin() + 1, leaves.end(), parts.end);
  std::copy(merges.begin(), merges.end(), parts.merges);
  const Stack stack{out, stride, int(program.slot), int(program.low), int(program.high), program.accumulate, program.every_row};
  PLAIT_FLOATS(grad.dtype, at.kernel, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = pack_aligned<T>(grad.data, channels, 2) && pack_aligned<float>(out, stride, 2);
    const int64_t packs = wide ? channels / 2 : channels, strips = (packs + 255) / 256;
    if (!strips) return;
    const unsigned threads = blocks_of((packs + strips - 1) / strips, WARP) * WARP;
    const size_t shared = size_t(program.peak - program.low) * threads * (wide ? 2 : 1) * sizeof(float);
    PLAIT_CHECK(strips < 65536, at.kernel, "rows of ", channels, " channels are too long");
    launch(at, wide ? rows_kernel<2, T> : rows_kernel<1, T>, {{unsigned(visits), unsigned(strips)}, threads, shared}, sorted,
           chosen, grad.as<T>(), parts, rows, channels, stack);
  });
}

}  // namespace plait
