// Sums of whole arrays in a fixed order, and conversions. add, tree_sum and convert give the CPU's bits.
#include <algorithm>

#include "core/expect.hpp"
#include "core/ops.hpp"
#include "cuda/columns.cuh"
#include "cuda/elementwise.cuh"

namespace plait {
namespace {

constexpr int MOST = 256;  // inputs of one kernel: their pointers are its arguments
constexpr int DEPTH = 32;   // of the stack of a tree of sums

struct Inputs {
  const void* data[MOST];
  int8_t merges[MOST];
  int count;
};

// The chain goes on from `sums`, what earlier kernels added up, or starts with the first input.
template <class X, class Y, int WIDTH>
__global__ void __launch_bounds__(256) add_kernel(Inputs inputs, const float* sums, int64_t packs, Y* out) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < packs; i += step) {
    float sum[WIDTH], x[WIDTH];
    if (sums)
      load_pack(sums + i * WIDTH, sum);
    else
      load_pack(static_cast<const X*>(inputs.data[0]) + i * WIDTH, sum);
    for (int k = sums ? 0 : 1; k < inputs.count; k++) {
      load_pack(static_cast<const X*>(inputs.data[k]) + i * WIDTH, x);
#pragma unroll
      for (int j = 0; j < WIDTH; j++) sum[j] += x[j];
    }
    store_pack(out + i * WIDTH, sum);
  }
}

// Elements of the last axis, whose length is `columns`, from `column` on.
template <class B, int WIDTH>
__device__ __forceinline__ void add_bias(const B* bias, int64_t columns, int64_t column, float (&x)[WIDTH]) {
#pragma unroll
  for (int j = 0; j < WIDTH; j++) {
    x[j] += to_float(bias[column]);
    column = column + 1 == columns ? 0 : column + 1;
  }
}

// One thread keeps the whole stack of its elements: it lies in local memory, which L1 holds.
template <class Y, class B, int WIDTH>
__global__ void __launch_bounds__(256) tree_kernel(Inputs parts, const B* bias, int64_t columns, int64_t packs, Y* out) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < packs; i += step) {
    const int64_t column = bias ? i * WIDTH % columns : 0;
    float stack[DEPTH][WIDTH];
    int top = 0;
    for (int k = 0; k < parts.count; k++) {
      load_pack(static_cast<const float*>(parts.data[k]) + i * WIDTH, stack[top++]);
      for (int m = 0; m < parts.merges[k]; m++) {
        top--;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) stack[top - 1][j] += stack[top][j];
      }
    }
    if (bias) add_bias(bias, columns, column, stack[0]);
    store_pack(out + i * WIDTH, stack[0]);
  }
}

// A pair is the commonest tree, and needs no stack.
template <class Y, class B, int WIDTH>
__global__ void __launch_bounds__(256)
    pair_kernel(const float* lower, const float* upper, const B* bias, int64_t columns, int64_t packs, Y* out) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < packs; i += step) {
    const int64_t column = bias ? i * WIDTH % columns : 0;
    float x[WIDTH];
    load_pack(lower + i * WIDTH, x);
    if (upper) {
      float y[WIDTH];
      load_pack(upper + i * WIDTH, y);
#pragma unroll
      for (int j = 0; j < WIDTH; j++) x[j] += y[j];
    }
    if (bias) add_bias(bias, columns, column, x);
    store_pack(out + i * WIDTH, x);
  }
}

struct Copy {
  __device__ void apply(const float (&x)[1], float (&out)[1]) const { out[0] = x[0]; }
};

struct Value {
  struct Row {};
  __device__ Row row(int64_t, int64_t) const { return {}; }
  __device__ void add(const float (&x)[1], const Row&, float (&sum)[1]) const { sum[0] += x[0]; }
};

bool same_shape(const ConstArray& x, const ConstArray& y) {
  return x.ndim == y.ndim && std::equal(x.shape, x.shape + x.ndim, y.shape);
}
void check_flat(const char* call, const char* name, const ConstArray& x, const ConstArray& out) {
  PLAIT_CHECK(same_shape(x, out), call, name, " is ", shape_text(x), " and out is ", shape_text(out),
              ": shapes must be equal");
  PLAIT_CHECK(x.contiguous(), call, name, " ", shape_text(x), " must be contiguous");
}
bool aligned(const void* data, size_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

}  // namespace

void add(const std::vector<ConstArray>& inputs, const Array& out) {
  PLAIT_CHECK(!inputs.empty(), "add", "needs at least one input");
  bool wide = out.size() % 4 == 0 && aligned(out.data, 16);
  for (const ConstArray& x : inputs) {
    check_flat("add", "an input", x, out);
    PLAIT_CHECK(x.dtype == inputs[0].dtype, "add", "inputs differ in type: ", shape_text(x), " and ",
                shape_text(inputs[0]));
    wide = wide && aligned(x.data, 16);
  }
  expect_contiguous("add", "out", out);
  PLAIT_FLOATS(inputs[0].dtype, "add", [&](auto zero_x) {
    PLAIT_FLOATS(out.dtype, "add", [&](auto zero_y) {
      using X = decltype(zero_x);
      using Y = decltype(zero_y);
      const int64_t packs = wide ? out.size() / 4 : out.size(), count = int64_t(inputs.size());
      float* sums = nullptr;
      for (int64_t first = 0; first < count; first += MOST) {
        Inputs some = {};
        for (int64_t k = first; k < std::min<int64_t>(count, first + MOST); k++) some.data[some.count++] = inputs[size_t(k)].data;
        const float* before = sums;
        const Grid grid{blocks_for(packs, 256), 256};
        if (first + MOST >= count) {
          launch(PLAIT_AT("add"), wide ? add_kernel<X, Y, 4> : add_kernel<X, Y, 1>, grid, some, before, packs, out.as<Y>());
        } else {
          sums = scratch<float>(out.size());
          launch(PLAIT_AT("add"), wide ? add_kernel<X, float, 4> : add_kernel<X, float, 1>, grid, some, before, packs, sums);
        }
      }
    });
  });
}

void tree_sum(const std::vector<ConstArray>& parts, const std::vector<int>& merges, const std::optional<ConstArray>& bias,
              const Array& out) {
  PLAIT_CHECK(!parts.empty() && parts.size() == merges.size(), "tree_sum", "needs parts and as many merges, got ",
              parts.size(), " and ", merges.size());
  PLAIT_CHECK(parts.size() <= size_t(MOST), "tree_sum", "adds at most ", MOST, " parts on a GPU, got ", parts.size());
  int64_t open = 0;
  bool wide = out.size() % 4 == 0 && aligned(out.data, 16);
  Inputs some = {};
  for (size_t i = 0; i < parts.size(); i++) {
    check_flat("tree_sum", "a part", parts[i], out);
    PLAIT_CHECK(parts[i].dtype == DType::float32, "tree_sum", "parts must be float32, got ", shape_text(parts[i]));
    PLAIT_CHECK(merges[i] >= 0 && merges[i] < ++open, "tree_sum", "merges[", i, "] = ", merges[i], " with ", open,
                " parts on the stack");
    PLAIT_CHECK(open <= DEPTH, "tree_sum", "the tree is deeper than ", DEPTH);
    open -= merges[i];
    some.data[i] = parts[i].data;
    some.merges[i] = int8_t(merges[i]);
    some.count++;
    wide = wide && aligned(parts[i].data, 16);
  }
  PLAIT_CHECK(open == 1, "tree_sum", "the merges leave ", open, " parts, must leave 1");
  expect_contiguous("tree_sum", "out", out);
  const int64_t columns = out.ndim ? out.shape[out.ndim - 1] : 1;
  if (bias)
    PLAIT_CHECK(bias->ndim == 1 && bias->shape[0] == columns && bias->contiguous(), "tree_sum", "bias is ",
                shape_text(*bias), ", must be a contiguous (", columns, ",) for out ", shape_text(out));
  PLAIT_FLOATS(out.dtype, "tree_sum", [&](auto zero_y) {
    PLAIT_FLOATS(bias ? bias->dtype : DType::float32, "tree_sum", [&](auto zero_b) {
      using Y = decltype(zero_y);
      using B = decltype(zero_b);
      const int64_t packs = wide ? out.size() / 4 : out.size();
      const Grid grid{blocks_for(packs, 256), 256};
      const B* added = bias ? bias->as<B>() : nullptr;
      if (some.count <= 2)
        launch(PLAIT_AT("tree_sum"), wide ? pair_kernel<Y, B, 4> : pair_kernel<Y, B, 1>, grid, parts[0].as<float>(),
               some.count == 2 ? parts[1].as<float>() : nullptr, added, columns, packs, out.as<Y>());
      else
        launch(PLAIT_AT("tree_sum"), wide ? tree_kernel<Y, B, 4> : tree_kernel<Y, B, 1>, grid, some, added, columns, packs,
               out.as<Y>());
    });
  });
}

void sum_rows(const ConstArray& x, bool accumulate, const Array& out) {
  PLAIT_CHECK(x.ndim == 3 && out.ndim == 1 && out.shape[0] == x.shape[2] && out.contiguous(), "sum_rows", "x is ",
              shape_text(x), " and out is ", shape_text(out), ", must be (B, S, C) and a contiguous (C,)");
  expect_unit_last("sum_rows", "x", x);
  PLAIT_FLOATS(x.dtype, "sum_rows", [&](auto zero) {
    using T = decltype(zero);
    sum_columns<T>(PLAIT_AT("sum_rows"), {&x}, Value{}, accumulate, {out.as<float>()});
  });
}

void convert(const ConstArray& x, const Array& out) {
  PLAIT_CHECK(same_shape(x, out), "convert", "x is ", shape_text(x), " and out is ", shape_text(out),
              ": shapes must be equal");
  PLAIT_FLOATS(x.dtype, "convert", [&](auto zero_x) {
    PLAIT_FLOATS(out.dtype, "convert", [&](auto zero_y) {
      elementwise<decltype(zero_x), decltype(zero_y), 1>(PLAIT_AT("convert"), {&x, &out}, Copy{});
    });
  });
}

}  // namespace plait
