"""What tests of conv2d share: shapes, calls with defaults, the answer in float64."""

from typing import NamedTuple

import ml_dtypes
import numpy as np

from plait import _cpu
from plait.comm import tree

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)


class Shape(NamedTuple):
    b: int
    h: int
    w: int
    i: int
    o: int
    kh: int
    kw: int
    stride: int
    padding: int

    @property
    def x(self):
        return self.b, self.h, self.w, self.i

    @property
    def out(self):
        oh = (self.h + 2 * self.padding - self.kh) // self.stride + 1
        ow = (self.w + 2 * self.padding - self.kw) // self.stride + 1
        return self.b, oh, ow, self.o

    def weight(self, input_first):
        ends = (self.i, self.o) if input_first else (self.o, self.i)
        return ends[0], self.kh, self.kw, ends[1]


SHAPES = [
    Shape(1, 1, 1, 1, 1, 1, 1, 1, 0),
    Shape(2, 5, 7, 3, 5, 3, 3, 1, 1),
    Shape(3, 8, 6, 5, 16, 3, 3, 2, 1),
    Shape(1, 13, 29, 16, 33, 3, 3, 1, 0),
    Shape(2, 9, 14, 33, 3, 1, 1, 1, 0),
    Shape(2, 9, 10, 5, 33, 1, 1, 2, 0),
    Shape(2, 11, 4, 16, 5, 1, 1, 3, 1),
    Shape(1, 17, 16, 3, 16, 7, 7, 2, 3),
    Shape(2, 4, 4, 1, 3, 7, 7, 1, 3),
    Shape(2, 10, 11, 5, 3, 3, 3, 3, 0),
    Shape(1, 2, 3, 3, 5, 3, 3, 3, 3),
    Shape(2, 6, 5, 16, 64, 2, 4, 3, 2),
    Shape(1, 3, 40, 33, 1, 3, 1, 1, 1),
    Shape(0, 5, 5, 3, 4, 3, 3, 1, 1),
    Shape(2, 5, 5, 0, 4, 3, 3, 1, 1),
    Shape(2, 5, 5, 4, 0, 3, 3, 1, 1),
]


def randoms(*shape, dtype=float32, seed=0):
    x = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return x.astype(np.float32).astype(dtype)


def same_bits(x, y):
    assert x.dtype == y.dtype
    kind = np.uint16 if x.dtype == bfloat16 else np.uint32
    np.testing.assert_array_equal(
        np.ascontiguousarray(x).view(kind), np.ascontiguousarray(y).view(kind)
    )


def operands(shape, input_first, dtype=float32, make=randoms):
    x, weight, grad = shape.x, shape.weight(input_first), shape.out
    return tuple(make(*s, seed=i).astype(dtype) for i, s in enumerate((x, weight, grad)))


def forward(x, weight, shape, input_first, leaves=None, dtype=None, kernels=_cpu):
    out = np.full((len(x), *shape.out[1:]), 7, dtype or x.dtype)
    leaves = leaves or [0, shape.i]
    kernels.conv2d_forward(x, weight, input_first, shape.stride, shape.padding, leaves, out)
    return out


def backward(grad, weight, shape, input_first, leaves=None, dtype=None, kernels=_cpu):
    grad_x = np.full((len(grad), *shape.x[1:]), 7, dtype or grad.dtype)
    leaves = leaves or [0, shape.o]
    kernels.conv2d_backward(grad, weight, input_first, shape.stride, shape.padding, leaves, grad_x)
    return grad_x


def backward_weight(grad, x, shape, input_first, out=None, kernels=_cpu):
    accumulate = out is not None
    if out is None:
        out = np.full(shape.weight(input_first), 7, float32)
    kernels.conv2d_backward_weight(
        grad, x, input_first, shape.stride, shape.padding, [0, len(x)], [0], 0, accumulate,
        out[None],
    )  # fmt: skip
    return out


def taps(shape):
    """(kh, kw, rows and columns of out, rows and columns of x) where out and x meet at that tap."""

    def axis(k, n, m):
        at = [j for j in range(m) if 0 <= j * shape.stride - shape.padding + k < n]
        first = at[0] if at else 0
        start = first * shape.stride - shape.padding + k
        stop = start + len(at) * shape.stride
        return slice(first, first + len(at)), slice(start, stop, shape.stride)

    for y in range(shape.kh):
        for z in range(shape.kw):
            out_rows, x_rows = axis(y, shape.h, shape.out[1])
            out_columns, x_columns = axis(z, shape.w, shape.out[2])
            if out_rows.stop > out_rows.start and out_columns.stop > out_columns.start:
                yield y, z, (out_rows, out_columns), (x_rows, x_columns)


def reference(x, weight, grad, shape, input_first):
    """Float64 (out, grad_x, grad_weight)."""
    x, weight, grad = (np.asarray(a, np.float64) for a in (x, weight, grad))
    w = weight.transpose(3, 1, 2, 0) if input_first else weight  # (O, KH, KW, I)
    out, grad_x, grad_w = np.zeros(grad.shape), np.zeros(x.shape), np.zeros(w.shape)
    for y, z, at_out, at_x in taps(shape):
        out[:, *at_out] += x[:, *at_x] @ w[:, y, z].T
        grad_x[:, *at_x] += grad[:, *at_out] @ w[:, y, z]
        grad_w[:, y, z] += np.einsum("bhwo,bhwi->oi", grad[:, *at_out], x[:, *at_x])
    return out, grad_x, grad_w.transpose(3, 1, 2, 0) if input_first else grad_w


def by_tree(parts):
    """Float32 parts of leaves, merged as plait.comm.tree says."""
    stack = []
    for part, count in zip(parts, tree.merges(len(parts), [(i, i + 1) for i in range(len(parts))])):
        stack.append(part)
        for _ in range(count):
            right = stack.pop()
            stack[-1] = stack[-1] + right
    (whole,) = stack
    return whole
