// GELU, its gradient and the residual over what a matmul has stored.
#include "cpu/epilogue.hpp"

#include "cpu/runs.hpp"
#include "cpu/vec.hpp"

namespace plait {
namespace {

template <class V, class T>
PLAIT_INLINE void residual_body(const T* residual, T* out, int64_t n) {
  int64_t i = 0;
  for (; i + WIDTH<V> <= n; i += WIDTH<V>) store(out + i, load<V>(residual + i) + load<V>(out + i));
  if (i < n) store(out + i, load<V>(residual + i, n - i) + load<V>(out + i, n - i), n - i);
}
PLAIT_VECTOR_KERNEL(residual_run, residual_body)

void add_residual(const ConstArray& residual, const Array& out) {
  const Runs<2> runs("matmul", {&residual, &out});
  PLAIT_FLOATS(out.dtype, "matmul", [&](auto zero) {
    using T = decltype(zero);
    parallel_runs(runs, [x = residual.as<T>(), y = out.as<T>()](const auto& p) {
      residual_run(x + p.offset[0], y + p.offset[1], p.length);
    });
  });
}

}  // namespace

void finish(const Epilogue& epilogue, const Array& out) {
  if (epilogue.gelu) gelu_forward(out, *epilogue.gelu);
  if (epilogue.gelu_backward) gelu_backward(out, *epilogue.gelu_backward, out);
  if (epilogue.residual) add_residual(*epilogue.residual, out);
}

}  // namespace plait
