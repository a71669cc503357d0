// Rows of a table by token, and their gradients: per row one chain of additions in token order,
// without atomics.
#include "core/embedding.hpp"

#include <algorithm>
#include <cstring>

#include "core/ops.hpp"
#include "cpu/threads.hpp"
#include "cpu/vec.hpp"

namespace plait {
namespace {

template <class V, class T>
PLAIT_INLINE void add_body(const T* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += WIDTH<V>)
    store(out + i, load<V>(out + i, n - i) + load<V>(x + i, n - i), n - i);
}
PLAIT_VECTOR_KERNEL(add_row, add_body)

constexpr int64_t STRIP = 64;  // columns of a row at a time; threads share them
constexpr int64_t MOST = 64;   // slots

// A token of a row that is here.
struct Occurrence {
  int64_t row, leaf, index;
};

std::vector<Occurrence> occurrences(const int32_t* tokens, const std::vector<int64_t>& leaves,
                                    int64_t first_row, int64_t rows) {
  std::vector<Occurrence> found;
  for (size_t leaf = 0; leaf + 1 < leaves.size(); leaf++)
    for (int64_t i = leaves[leaf]; i < leaves[leaf + 1]; i++) {
      const int64_t row = tokens[i] - first_row;
      if (row >= 0 && row < rows) found.push_back({row, int64_t(leaf), i});
    }
  std::stable_sort(found.begin(), found.end(),
                   [](const Occurrence& a, const Occurrence& b) { return a.row < b.row; });
  return found;
}

// One strip of one row, out(0), in all slots. A slot without a term is nothing, not zero.
template <class T>
void run_row(const EmbeddingProgram& p, const std::vector<int>& merges, const T* grad,
             int64_t grad_stride, int64_t width, const Occurrence* next, const Occurrence* end,
             float* out, int64_t stride) {
  float stack[MOST][STRIP];
  bool some[MOST];
  const size_t bytes = size_t(width) * sizeof(float);
  int64_t top = p.slot, loaded = p.slot;  // slots below `loaded` are still in out alone
  for (size_t leaf = 0; leaf < merges.size(); leaf++, top++) {
    const bool continued = leaf == 0 && p.accumulate;
    some[top] = continued;
    if (continued)
      std::memcpy(stack[top], out + top * stride, bytes);
    else
      std::memset(stack[top], 0, bytes);
    for (; next < end && next->leaf == int64_t(leaf); next++) {
      add_row(grad + next->index * grad_stride, width, stack[top]);
      some[top] = true;
    }
    for (int m = 0; m < merges[leaf]; m++, top--) {
      if (top - 1 < loaded) {
        loaded = top - 1;
        std::memcpy(stack[loaded], out + loaded * stride, bytes);
        some[loaded] = true;
      }
      if (!some[top]) continue;
      if (some[top - 1])
        add_row(stack[top], width, stack[top - 1]);
      else
        std::memcpy(stack[top - 1], stack[top], bytes);
      some[top - 1] = true;
    }
  }
  for (int64_t s = p.low; s < p.high; s++)
    if (some[s] || p.every_row) std::memcpy(out + s * stride, stack[s], bytes);
}

// Rows that are visited rise, lie in the table, and have all tokens among them.
void check_visited(const std::vector<int64_t>& visited, const std::vector<Occurrence>& found,
                   int64_t rows, bool every_row) {
  size_t next = 0;
  for (size_t i = 0; i < visited.size(); i++) {
    PLAIT_CHECK(visited[i] >= 0 && visited[i] < rows && (i == 0 || visited[i - 1] < visited[i]),
                "embedding_backward", "rows must rise from 0 to below ", rows, ", got ", visited[i],
                " at ", i);
    while (next < found.size() && found[next].row == visited[i]) next++;
  }
  PLAIT_CHECK(every_row || next == found.size(), "embedding_backward", "rows lack row ",
              next < found.size() ? found[next].row : 0, " of a token");
}

}  // namespace

void embedding_forward(const ConstArray& tokens, const ConstArray& weight, int64_t first_row,
                       const Array& out) {
  check_embedding_forward(tokens, weight, out);
  const int64_t count = tokens.shape[0], rows = weight.shape[0], channels = weight.shape[1];
  const size_t bytes = size_t(channels * size_of(weight.dtype));
  const auto* source = static_cast<const char*>(weight.data);
  auto* target = const_cast<char*>(static_cast<const char*>(out.data));
  const int32_t* token = tokens.as<int32_t>();
  parallel_for(count, 1 + 16384 / (channels + 1), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = token[i] - first_row;
      if (row >= 0 && row < rows)
        std::memcpy(target + i * bytes, source + row * bytes, bytes);
      else
        std::memset(target + i * bytes, 0, bytes);
    }
  });
}

void embedding_backward(const ConstArray& tokens, const ConstArray& grad, int64_t first_row,
                        const std::vector<int64_t>& leaves, const std::vector<int>& merges,
                        int64_t slot, bool accumulate, const std::optional<ConstArray>& touched,
                        const Array& grad_weight) {
  check_embedding_backward(tokens, grad, leaves, merges, slot, accumulate, touched, grad_weight);
  const int64_t count = tokens.shape[0], rows = grad_weight.shape[1],
                channels = grad_weight.shape[2], stride = grad_weight.strides[0];
  float* out = grad_weight.as<float>();
  const EmbeddingProgram program = embedding_program(merges, slot, accumulate);
  const bool every_row = program.every_row && !touched;
  for (int64_t fresh : program.fresh) {
    // What held something before has it in rows that are visited.
    if (every_row || (program.every_row && fresh < slot + accumulate)) continue;
    parallel_for(rows, 1 + 65536 / (channels + 1), [=](int64_t begin, int64_t end) {
      float* to = out + fresh * stride;
      std::fill(to + begin * channels, to + end * channels, 0.0f);
    });
  }
  const std::vector<Occurrence> found = occurrences(tokens.as<int32_t>(), leaves, first_row, rows);
  std::vector<int64_t> visited;  // unless it is every row
  if (program.every_row && touched)
    visited.assign(touched->as<int64_t>(), touched->as<int64_t>() + touched->shape[0]);
  else if (!every_row)
    for (const Occurrence& o : found)
      if (visited.empty() || visited.back() != o.row) visited.push_back(o.row);
  check_visited(visited, found, rows, every_row);
  const int64_t visits = every_row ? rows : int64_t(visited.size());
  PLAIT_FLOATS(grad.dtype, "embedding_backward", [&](auto zero) {
    using T = decltype(zero);
    const T* grad_data = grad.as<T>();
    const int64_t strips = (channels + STRIP - 1) / STRIP;
    parallel_for(strips, 1 + 16384 / (STRIP * (count + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t strip = begin; strip < end; strip++) {
        const int64_t first = strip * STRIP, width = std::min(STRIP, channels - first);
        size_t next = 0;
        for (int64_t visit = 0; visit < visits; visit++) {
          const int64_t row = every_row ? visit : visited[size_t(visit)];
          size_t last = next;
          while (last < found.size() && found[last].row == row) last++;
          run_row(program, merges, grad_data + first, channels, width, found.data() + next,
                  found.data() + last, out + row * channels + first, stride);
          next = last;
        }
      }
    });
  });
}

}  // namespace plait
