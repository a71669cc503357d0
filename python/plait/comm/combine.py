"""What the reductions of every transport share: how a sum is cut over ranks, and the additions.

Transports move bytes. Float sums are added here, by plait's kernel in the order of the tree;
integer sums, max and min have no order, and floats take part in max and min as integers of the
same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import ml_dtypes
import numpy as np

from plait.backend import as_type, assign, beside, kernels_of
from plait.comm.tree import Leaves
from plait.comm.work import Array

Op = Literal["sum", "max", "min"]
Bounds = tuple[int, ...]
Parts = tuple[tuple[int, ...], list[int]]

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (FLOAT32, BFLOAT16, np.dtype(np.float16), FLOAT64)
_UFUNCS: dict[str, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def even_bounds(n: int, size: int) -> Bounds:
    """Rank r has [bounds[r], bounds[r + 1]) of n."""
    return tuple(rank * n // size for rank in range(size + 1))


def checked_bounds(bounds: Sequence[int] | None, n: int, size: int) -> Bounds:
    if bounds is None:
        return even_bounds(n, size)
    found = tuple(int(b) for b in bounds)
    rising = all(a <= b for a, b in pairwise(found))
    if len(found) != size + 1 or found[0] != 0 or found[-1] != n or not rising:
        raise ValueError(
            f"bounds {found} do not cut an axis of length {n} over {size} ranks: "
            f"needed are {size + 1} rising numbers from 0 to {n}"
        )
    return found


@cache
def counts_and_merges(leaves: Leaves) -> Parts:
    """How many tree nodes each rank sends, and the merges after each of all of them."""
    size = len(leaves.bounds) - 1
    return tuple(len(leaves.nodes(rank)) for rank in range(size)), leaves.merges()


@dataclass(frozen=True)
class Reduction:
    """This rank's nodes (k, outer, n, inner), contiguous, with n cut over ranks at bounds.

    bias (float32) is added over the last axis of the slice; bias_cut says that n is that axis.
    parts says how many nodes each rank has, and their merges, where that is not all of the leaves.
    """

    nodes: Array
    leaves: Leaves
    op: Op
    bounds: Bounds
    bias: Array | None = None
    bias_cut: bool = False
    parts: Parts | None = None

    def plan(self) -> Parts:
        """How many nodes each rank has, and the merges after each of them all."""
        return self.parts or counts_and_merges(self.leaves)

    def lengths(self) -> list[int]:
        """Elements of each rank's slice of one node."""
        _, outer, _, inner = self.nodes.shape
        return [outer * inner * (b - a) for a, b in pairwise(self.bounds)]

    def combine(self, parts: Sequence[Array], start: int, stop: int, out: Array) -> None:
        """out = the reduction of parts, every rank's nodes of slice [start, stop) in leaf order.
        out is contiguous and shares no memory with a part."""
        if out.size == 0:
            return
        bias = self.bias[start:stop] if self.bias is not None and self.bias_cut else self.bias
        flat = out.reshape(-1)
        if self.op != "sum" or flat.dtype not in FLOATS:
            assign(flat, parts[0].reshape(-1))
            for part in parts[1:]:
                _UFUNCS[self.op](flat, part.reshape(-1), out=flat)
        else:
            _, merges = self.plan()
            tree_sum([part.reshape(-1) for part in parts], merges, bias, flat)


def adds(reduction: Reduction, out: Array) -> bool:
    """Whether a window can do these additions."""
    kinds = (FLOAT32, BFLOAT16)
    dtype = reduction.nodes.dtype
    return dtype.kind in "iu" or (dtype in kinds and out.dtype in kinds)


def tree_sum(parts: Sequence[Array], merges: list[int], bias: Array | None, out: Array) -> None:
    """The tree's sum of flat parts, plus bias (repeated), in float32 (float64 for float64), rounded
    once to the type of out."""
    if out.dtype == FLOAT64:
        _tree_sum_float64(parts, merges, bias, out)
        return
    width = out.size if bias is None else bias.size
    rows = [as_type(part, FLOAT32).reshape(-1, width) for part in parts]
    if out.dtype in (FLOAT32, BFLOAT16):
        kernels_of(out).tree_sum(rows, merges, bias, out.reshape(-1, width))
    else:
        wide = beside(out, rows[0].shape, FLOAT32)
        kernels_of(out).tree_sum(rows, merges, bias, wide)
        out[:] = wide.reshape(-1)


def _tree_sum_float64(parts: Any, merges: list[int], bias: Array | None, out: Array) -> None:
    stack: list[Array] = []
    for part, count in zip(parts, merges, strict=True):
        stack.append(part)
        for _ in range(count):
            right = stack.pop()
            stack[-1] = stack[-1] + right
    (total,) = stack
    width = out.size if bias is None else bias.size
    out.reshape(-1, width)[:] = total.reshape(-1, width) + (0.0 if bias is None else bias)


def order_keys(x: Array, op: Op) -> Array:
    """Integers in the order of the floats x; NaN wins in max and in min, and -0 is below 0."""
    integer = np.dtype(f"i{x.dtype.itemsize}")
    bits = x.view(integer)
    keys: Array = bits ^ ((bits >> (8 * integer.itemsize - 1)) & np.iinfo(integer).max)
    limits = np.iinfo(integer)
    keys[np.isnan(x)] = limits.max if op == "max" else limits.min
    return keys


def from_order_keys(keys: Array, dtype: np.dtype[Any]) -> Array:
    bits = keys ^ ((keys >> (8 * keys.dtype.itemsize - 1)) & np.iinfo(keys.dtype).max)
    found: Array = bits.view(dtype)
    return found
