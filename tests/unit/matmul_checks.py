"""What tests of matmul share: a call with defaults, exact rounding, sums in the tree."""

from fractions import Fraction

import numpy as np
from kernel_checks import BFLOAT16, FLOAT32

from plait import _cpu
from plait.comm import tree


def run(
    a, b, ta=False, tb=False, *, leaves=None, out=None, accumulate=False, bias=None, dtype=FLOAT32,
    period=0, kernels=_cpu,
):  # fmt: skip
    rows, depth = a.shape[::-1] if ta else a.shape
    columns = b.shape[0] if tb else b.shape[1]
    if out is None:
        out = np.full((rows, columns), 7.0, dtype)
    kernels.matmul(a, b, ta, tb, leaves or [0, depth], accumulate, period, bias, out)
    return out


def strided(x, gap):
    """The same values in rows that lie `gap` elements further apart."""
    wide = np.full((x.shape[0], x.shape[1] + gap), np.nan, x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def same_bits(x, y):
    kind = np.uint16 if x.dtype == BFLOAT16 else np.uint32
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(
        np.ascontiguousarray(x).view(kind), np.ascontiguousarray(y).view(kind)
    )


def nearest_float32(x):
    """x rounded once to float32, ties to even."""
    guess = np.float32(float(x))
    near = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    return min(near, key=lambda f: (abs(Fraction(float(f)) - x), int(f.view(np.uint32)) & 1))


def tree_sum(parts):
    stack = []
    nodes = [(i, i + 1) for i in range(len(parts))]
    for part, merges in zip(parts, tree.merges(len(parts), nodes), strict=True):
        stack.append(part)
        for _ in range(merges):
            upper = stack.pop()
            stack[-1] = stack[-1] + upper
    (root,) = stack
    return root
