// bfloat16 x bfloat16 on tensor cores by mma.sync; operands whose rows are not aligned to 16 bytes are copied first.
#include "cuda/matmul_launch.cuh"
#include "cuda/matmul_mma.cuh"

namespace plait {
namespace {

// out (k, stride) = element (i, j) of the operand, k by width
__global__ void __launch_bounds__(256)
    align_kernel(const bfloat16* x, int64_t deep, int64_t wide, int64_t k, int64_t width, int64_t stride, bfloat16* out) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t t = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; t < k * width; t += step) {
    const int64_t i = deep == 1 ? t % k : t / width, j = deep == 1 ? t / k : t % width;
    out[i * stride + j] = x[i * deep + j * wide];
  }
}

// An operand as kernels take it: rows aligned to 16 bytes and, where k is contiguous, leaves that begin at multiples of 8.
// One that is not so is copied, as (k, width).
struct Stored {
  const bfloat16* data;
  int64_t stride, bytes;
  bool deep;

  Stored(const MatmulProblem& p, const bfloat16* x, int64_t row_stride, int64_t width, bool k_contiguous)
      : data(x), stride(row_stride), bytes(0), deep(k_contiguous), k_(p.k), width_(width) {
    from_deep_ = deep ? 1 : stride, from_wide_ = deep ? stride : 1;
    bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0 && (row_stride % 8 == 0 || (deep ? width : p.k) <= 1);
    if (deep) {
      for (size_t i = 0; i + 1 < p.leaves->size(); i++) aligned = aligned && (*p.leaves)[i] % 8 == 0;
      aligned = aligned && (p.period % 8 == 0 || p.period >= p.k);
    }
    if (aligned) return;
    deep = false;
    stride = (width + 7) / 8 * 8;
    bytes = rounded_up(p.k * stride * 2);
  }
  void copy_to(char* memory) {
    if (!bytes) return;
    bfloat16* const to = reinterpret_cast<bfloat16*>(memory);
    launch(PLAIT_AT("matmul, rows aligned"), align_kernel, {blocks_for(k_ * width_, 1024), 256}, data, from_deep_, from_wide_,
           k_, width_, stride, to);
    data = to;
  }

 private:
  int64_t from_deep_, from_wide_, k_, width_;
};

template <class Tile>
void run(const MatmulProblem& p) {
  const int64_t tiles = ((p.m + Tile::ROWS - 1) / Tile::ROWS) * ((p.n + Tile::COLUMNS - 1) / Tile::COLUMNS);
  const MatmulShare share = share_out(p, tiles, int64_t(Tile::PAIRS) * Tile::THREADS * 8, Tile::BLOCKS);
  Stored a(p, p.a, p.row_stride_a, p.m, !p.transpose_a), b(p, p.b, p.row_stride_b, p.n, p.transpose_b);
  const int64_t kept_bytes = rounded_up(share.kept_bytes);
  char* memory = static_cast<char*>(scratch_bytes(a.bytes + b.bytes + kept_bytes + share.partial_bytes));
  a.copy_to(memory);
  b.copy_to(memory + a.bytes);
  memory += a.bytes + b.bytes;
  float* const partial = reinterpret_cast<float*>(memory + kept_bytes);

  MmaCall call = {};
  call.a = a.data, call.b = b.data, call.stride_a = a.stride, call.stride_b = b.stride;
  call.period = int(p.period % 16 && p.period < p.k ? p.period : std::max<int64_t>(p.k, 1));
  call.final = matmul_out(p);
  call.out = out_of_groups(share, call.final, partial);
  call.accumulate = p.accumulate, call.slot = p.slot;
  call.kept = reinterpret_cast<float2*>(memory), call.depth = share.plan.depth;
  call.after = after_of_groups(share, p);
  call.leaves = share.plan.leaves;
  const auto kernel = a.deep   ? b.deep ? mma_kernel<Tile, true, true> : mma_kernel<Tile, true, false>
                      : b.deep ? mma_kernel<Tile, false, true>
                               : mma_kernel<Tile, false, false>;
  launch(PLAIT_AT("matmul, mma.sync"), kernel, {share.blocks, Tile::THREADS, size_t(Tile::SHARED)}, call);
  finish(PLAIT_AT("matmul, merge of leaves"), share, call.final, partial, after_call(p));
}

}  // namespace

void matmul_mma(const MatmulProblem& p) {
  const int64_t large = ((p.m + 127) / 128) * ((p.n + 127) / 128) * int64_t(p.merges->size());
  // Small tiles fill more multiprocessors; an element's bits are the same.
  const bool small = p.m <= 64 || p.n <= 64 || large < device_properties().multiprocessors;
  small ? run<SmallTile>(p) : run<LargeTile>(p);
}

}  // namespace plait
