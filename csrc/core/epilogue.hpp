// A matmul's epilogue as its engines have it, once it is checked.
#pragma once
#include "core/expect.hpp"
#include "core/ops.hpp"

namespace plait {

// What a sum becomes after it is rounded to out's type.
struct After {
  enum Kind : int { nothing, gelu, gelu_backward, residual };
  Kind kind;
  void* data;  // a matrix of out's shape and type: gelu's is written, the others' are read
  int64_t stride;
};

inline After after_of(const Epilogue& epilogue, bool accumulate, const Array& out) {
  const ConstArray* const given[] = {epilogue.gelu ? &*epilogue.gelu : nullptr,
                                     epilogue.gelu_backward ? &*epilogue.gelu_backward : nullptr,
                                     epilogue.residual ? &*epilogue.residual : nullptr};
  constexpr const char* NAMES[] = {"gelu", "gelu_backward", "residual"};
  After after = {After::nothing, nullptr, 0};
  for (int i = 0; i < 3; i++) {
    if (!given[i]) continue;
    const ConstArray& x = *given[i];
    PLAIT_CHECK(after.kind == After::nothing, "matmul", "got both ", NAMES[int(after.kind) - 1], " and ", NAMES[i],
                ": a sum has one epilogue at most");
    PLAIT_CHECK(!accumulate, "matmul", "got ", NAMES[i], " and accumulate: a chain that goes on has no epilogue");
    expect_shape("matmul", NAMES[i], x, {out.shape[0], out.shape[1]});
    PLAIT_CHECK(x.dtype == out.dtype, "matmul", NAMES[i], " is ", shape_text(x), ", must be of out's type: out ",
                shape_text(out));
    expect_unit_last("matmul", NAMES[i], x);
    PLAIT_CHECK(i > 0 || x.shape[0] <= 1 || x.strides[0] >= x.shape[1], "matmul", "the rows of gelu overlap: stride ",
                x.strides[0], " in ", shape_text(x));
    PLAIT_CHECK(x.data != out.data || x.size() == 0, "matmul", NAMES[i], " ", shape_text(x), " is out itself");
    after = {After::Kind(i + 1), const_cast<void*>(x.data), x.strides[0]};
  }
  return after;
}

}  // namespace plait
