// Sums of whole arrays in a fixed order, and conversions. A block of elements stays in cache while
// all parts pass over it.
#include <algorithm>

#include "core/ops.hpp"
#include "cpu/isa.hpp"
#include "cpu/scratch.hpp"
#include "cpu/threads.hpp"
#include "cpu/vec.hpp"

namespace plait {
namespace {

constexpr int64_t BLOCK = 1024;            // floats: 4 KB of L1 for every open node of the tree
constexpr int64_t WORTH_A_THREAD = 32768;  // elements

struct Parts {
  const float* part[8];
};

template <class X, class Y>
PLAIT_INLINE void convert_body(const X* x, Y* out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = from_float<Y>(to_float(x[i]));
}
template <class X>
PLAIT_INLINE void add_body(const float* lower, const X* upper, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = lower[i] + to_float(upper[i]);
}
template <class V, class X, class Y>
PLAIT_INLINE void add_two_body(const X* x, const X* y, Y* out, int64_t n) {
  int64_t i = 0;
  for (; i + WIDTH<V> <= n; i += WIDTH<V>) store(out + i, load<V>(x + i) + load<V>(y + i));
  if (i < n) store(out + i, load<V>(x + i, n - i) + load<V>(y + i, n - i), n - i);
}
template <class V, class X, class Y>
PLAIT_INLINE void add_all_body(const X* const* x, int64_t count, int64_t begin, int64_t end,
                               Y* out) {
  for (int64_t i = begin; i < end; i += WIDTH<V>) {
    V sum = load<V>(x[0] + i, end - i);
    for (int64_t k = 1; k < count; k++) sum += load<V>(x[k] + i, end - i);
    store(out + i, sum, end - i);
  }
}
// Complete trees of four and eight parts in registers: memory delivers that many streams side by
// side at full rate, and one short block after the other at half of it.
PLAIT_INLINE void tree4_body(Parts p, int64_t first, float* __restrict out, int64_t n) {
  const float *a = p.part[0] + first, *b = p.part[1] + first, *c = p.part[2] + first,
              *d = p.part[3] + first;
  for (int64_t i = 0; i < n; i++) out[i] = (a[i] + b[i]) + (c[i] + d[i]);
}
PLAIT_INLINE void tree8_body(Parts p, int64_t first, float* __restrict out, int64_t n) {
  const float *a = p.part[0] + first, *b = p.part[1] + first, *c = p.part[2] + first,
              *d = p.part[3] + first;
  const float *e = p.part[4] + first, *f = p.part[5] + first, *g = p.part[6] + first,
              *h = p.part[7] + first;
  for (int64_t i = 0; i < n; i++)
    out[i] = ((a[i] + b[i]) + (c[i] + d[i])) + ((e[i] + f[i]) + (g[i] + h[i]));
}
template <class B, class Y>
PLAIT_INLINE void finish_body(const float* x, const B* bias, Y* out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = from_float<Y>(x[i] + to_float(bias[i]));
}
// x (samples, positions, n): out[i] continues its chain over samples, then positions.
template <class X>
PLAIT_INLINE void sum_rows_body(const X* x, int64_t samples, int64_t positions,
                                int64_t sample_stride, int64_t position_stride, float* out,
                                int64_t n) {
  for (int64_t b = 0; b < samples; b++)
    for (int64_t s = 0; s < positions; s++) {
      const X* row = x + b * sample_stride + s * position_stride;
      for (int64_t i = 0; i < n; i++) out[i] += to_float(row[i]);
    }
}

PLAIT_KERNEL(convert_run, convert_body)
PLAIT_KERNEL(add_run, add_body)
PLAIT_VECTOR_KERNEL(add_two_run, add_two_body)
PLAIT_VECTOR_KERNEL(add_all_run, add_all_body)
PLAIT_KERNEL(tree4_run, tree4_body)
PLAIT_KERNEL(tree8_run, tree8_body)
PLAIT_KERNEL(finish_run, finish_body)
PLAIT_KERNEL(sum_rows_run, sum_rows_body)

void check_flat(const char* call, const char* name, const ConstArray& x, const ConstArray& out) {
  bool equal = x.ndim == out.ndim && std::equal(x.shape, x.shape + x.ndim, out.shape);
  PLAIT_CHECK(equal, call, name, " is ", shape_text(x), " and out is ", shape_text(out),
              ": shapes must be equal");
  PLAIT_CHECK(x.contiguous(), call, name, " ", shape_text(x), " must be contiguous");
}

void copy_run(const void* x, DType from, void* out, DType to, int64_t x_offset, int64_t out_offset,
              int64_t n) {
  PLAIT_FLOATS(from, "convert", [&](auto a) {
    PLAIT_FLOATS(to, "convert", [&](auto b) {
      convert_run(static_cast<const decltype(a)*>(x) + x_offset,
                  static_cast<decltype(b)*>(out) + out_offset, n);
    });
  });
}

// Adds the bias of the last axis (length `columns`) to block [first, first + n) of flat elements,
// rounds and stores.
template <class Y>
void finish_block(const float* sum, const std::optional<ConstArray>& bias, int64_t columns,
                  int64_t first, int64_t n, Y* out) {
  if (!bias) return convert_run(sum, out, n);
  for (int64_t i = 0; i < n;) {
    const int64_t column = (first + i) % columns, here = std::min(n - i, columns - column);
    PLAIT_FLOATS(bias->dtype, "tree_sum", [&](auto zero) {
      finish_run(sum + i, static_cast<const decltype(zero)*>(bias->data) + column, out + i, here);
    });
    i += here;
  }
}

// What tree_sum does with a block: push the sum of a complete tree of 1, 4 or 8 parts, then merge.
struct Step {
  Parts parts;
  int count, merges;
};

std::vector<Step> tree_steps(const std::vector<ConstArray>& parts, const std::vector<int>& merges) {
  static const int complete[] = {0, 1, 0, 2, 0, 1, 0, 3};
  std::vector<Step> steps;
  for (size_t i = 0; i < parts.size();) {
    auto tree_of = [&](size_t n) {
      return i + n <= parts.size() &&
             std::equal(complete, complete + n - 1, merges.begin() + int64_t(i)) &&
             merges[i + n - 1] >= complete[n - 1];
    };
    const size_t n = tree_of(8) ? 8 : tree_of(4) ? 4 : 1;
    Step step{{}, int(n), merges[i + n - 1] - (n == 8 ? 3 : n == 4 ? 2 : 0)};
    for (size_t j = 0; j < n; j++)
      step.parts.part[j] = static_cast<const float*>(parts[i + j].data);
    steps.push_back(step);
    i += n;
  }
  return steps;
}

}  // namespace

void add(const std::vector<ConstArray>& inputs, const Array& out) {
  PLAIT_CHECK(!inputs.empty(), "add", "needs at least one input");
  for (const ConstArray& x : inputs) {
    check_flat("add", "an input", x, out);
    PLAIT_CHECK(x.dtype == inputs[0].dtype, "add", "inputs differ in type: ", shape_text(x),
                " and ", shape_text(inputs[0]));
  }
  PLAIT_CHECK(out.contiguous(), "add", "out ", shape_text(out), " must be contiguous");
  PLAIT_FLOATS(inputs[0].dtype, "add", [&](auto x) {
    PLAIT_FLOATS(out.dtype, "add", [&](auto y) {
      using X = decltype(x);
      using Y = decltype(y);
      std::vector<const X*> from;
      for (const ConstArray& input : inputs) from.push_back(input.as<X>());
      const X* const* data = from.data();
      const int64_t count = int64_t(inputs.size());
      Y* to = out.as<Y>();
      parallel_for(out.size(), WORTH_A_THREAD, [=](int64_t begin, int64_t end) {
        if (count == 2)
          add_two_run(data[0] + begin, data[1] + begin, to + begin, end - begin);
        else
          add_all_run(data, count, begin, end, to);
      });
    });
  });
}

void tree_sum(const std::vector<ConstArray>& parts, const std::vector<int>& merges,
              const std::optional<ConstArray>& bias, const Array& out) {
  PLAIT_CHECK(!parts.empty() && parts.size() == merges.size(), "tree_sum",
              "needs parts and as many merges, got ", parts.size(), " and ", merges.size());
  int64_t open = 0, most = 0;
  for (size_t i = 0; i < parts.size(); i++) {
    check_flat("tree_sum", "a part", parts[i], out);
    PLAIT_CHECK(parts[i].dtype == DType::float32, "tree_sum", "parts must be float32, got ",
                shape_text(parts[i]));
    most = std::max(most, ++open);
    PLAIT_CHECK(merges[i] >= 0 && merges[i] < open, "tree_sum", "merges[", i, "] = ", merges[i],
                " with ", open, " parts on the stack");
    open -= merges[i];
  }
  PLAIT_CHECK(open == 1, "tree_sum", "the merges leave ", open, " parts, must leave 1");
  PLAIT_CHECK(out.contiguous(), "tree_sum", "out ", shape_text(out), " must be contiguous");
  const int64_t columns = out.ndim ? out.shape[out.ndim - 1] : 1;
  if (bias)
    PLAIT_CHECK(bias->ndim == 1 && bias->shape[0] == columns && bias->contiguous(), "tree_sum",
                "bias is ", shape_text(*bias), ", must be a contiguous (", columns, ",) for out ",
                shape_text(out));

  const std::vector<Step> steps = tree_steps(parts, merges);
  PLAIT_FLOATS(out.dtype, "tree_sum", [&](auto zero) {
    using Y = decltype(zero);
    parallel_for(out.size(), WORTH_A_THREAD, [&](int64_t begin, int64_t end) {
      thread_local Scratch memory;
      float* blocks = memory.get<float>(most * BLOCK);
      std::vector<const float*> stack(size_t(most), nullptr);
      for (int64_t first = begin; first < end; first += BLOCK) {
        const int64_t n = std::min(BLOCK, end - first);
        int64_t top = 0;  // a part lies in its own memory, a sum in the block of its depth
        for (const Step& step : steps) {
          float* sum = blocks + top * BLOCK;
          if (step.count == 8) tree8_run(step.parts, first, sum, n);
          if (step.count == 4) tree4_run(step.parts, first, sum, n);
          stack[size_t(top++)] = step.count == 1 ? step.parts.part[0] + first : sum;
          for (int m = 0; m < step.merges; m++) {
            top--;
            sum = blocks + (top - 1) * BLOCK;
            add_run(stack[size_t(top - 1)], stack[size_t(top)], sum, n);
            stack[size_t(top - 1)] = sum;
          }
        }
        finish_block(stack[0], bias, columns, first, n, out.as<Y>() + first);
      }
    });
  });
}

void sum_rows(const ConstArray& x, bool accumulate, const Array& out) {
  PLAIT_CHECK(x.ndim == 3 && out.ndim == 1 && out.shape[0] == x.shape[2] && out.contiguous(),
              "sum_rows", "x is ", shape_text(x), " and out is ", shape_text(out),
              ", must be (B, S, C) and a contiguous (C,)");
  PLAIT_CHECK(x.size() == 0 || x.shape[2] == 1 || x.strides[2] == 1, "sum_rows",
              "the last axis of x must have stride 1, got ", x.strides[2], " in ", shape_text(x));
  float* sums = out.as<float>();
  PLAIT_FLOATS(x.dtype, "sum_rows", [&](auto zero) {
    const auto* data = static_cast<const decltype(zero)*>(x.data);
    const int64_t rows = x.shape[0] * x.shape[1];
    const int64_t grain = std::max<int64_t>(64, WORTH_A_THREAD / std::max<int64_t>(rows, 1));
    parallel_for(x.shape[2], grain, [&](int64_t begin, int64_t end) {
      if (!accumulate) std::fill(sums + begin, sums + end, 0.0f);
      for (int64_t first = begin; first < end; first += BLOCK)
        sum_rows_run(data + first, x.shape[0], x.shape[1], x.strides[0], x.strides[1], sums + first,
                     std::min(BLOCK, end - first));
    });
  });
}

void convert(const ConstArray& x, const Array& out) {
  bool equal = x.ndim == out.ndim && std::equal(x.shape, x.shape + x.ndim, out.shape);
  PLAIT_CHECK(equal, "convert", "x is ", shape_text(x), " and out is ", shape_text(out),
              ": shapes must be equal");
  if (out.size() == 0)
    return copy_run(x.data, x.dtype, const_cast<void*>(out.data), out.dtype, 0, 0, 0);
  // Rows as long as both arrays allow: axes that lie without gaps in both become one.
  int64_t shape[MAX_DIMS + 1] = {1}, x_stride[MAX_DIMS + 1] = {1}, out_stride[MAX_DIMS + 1] = {1};
  int axes = 1;  // axis 0 is the fastest
  for (int i = x.ndim - 1; i >= 0; i--) {
    if (x.shape[i] == 1) continue;
    const int top = axes - 1;
    if (x.strides[i] == x_stride[top] * shape[top] &&
        out.strides[i] == out_stride[top] * shape[top]) {
      shape[top] *= x.shape[i];
      continue;
    }
    PLAIT_CHECK(shape[0] > 1 || x.shape[x.ndim - 1] == 1, "convert",
                "the last axis must have stride 1: x ", shape_text(x), " has ", x.strides[i],
                ", out has ", out.strides[i]);
    shape[axes] = x.shape[i], x_stride[axes] = x.strides[i], out_stride[axes] = out.strides[i];
    axes++;
  }
  const int64_t pieces = (shape[0] + WORTH_A_THREAD - 1) / WORTH_A_THREAD,
                rows = out.size() / shape[0];
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD * pieces / shape[0]);
  parallel_for(rows * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      int64_t row = i / pieces, x_offset = i % pieces * WORTH_A_THREAD, out_offset = x_offset;
      const int64_t n = std::min(WORTH_A_THREAD, shape[0] - x_offset);
      for (int axis = 1; axis < axes; axis++) {
        x_offset += row % shape[axis] * x_stride[axis];
        out_offset += row % shape[axis] * out_stride[axis];
        row /= shape[axis];
      }
      copy_run(x.data, x.dtype, const_cast<void*>(out.data), out.dtype, x_offset, out_offset, n);
    }
  });
}

}  // namespace plait
