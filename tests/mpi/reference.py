"""The tree's sum in plain numpy, written from its definition and not from the code under test."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SIZES = (0, 1, 7, 1000, 100003)
FLOATS = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))
INTEGERS = tuple(np.dtype(t) for t in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"))
UFUNCS = {"sum": np.add, "max": np.maximum, "min": np.minimum}
RANKS = (1, 2, 3, 4)
MOVED = (*FLOATS, *INTEGERS, np.dtype(bool), np.dtype(np.float64), np.dtype(np.complex128))
# Every size for types of 1, 2, 4 and 16 bytes, the small ones for all.
SIZED = tuple(
    (n, dtype)
    for n in SIZES
    for dtype in MOVED
    if n < 10_000 or dtype in (FLOATS[0], FLOATS[1], INTEGERS[0], MOVED[-1])
)


def middle(count: int) -> int:
    """The largest power of two below count."""
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def tree(leaves: list[Array], dtype: Any = np.float32) -> Array:
    """Sum of leaves, in dtype, by the tree that splits at the largest power of two below n."""
    if len(leaves) == 1:
        return leaves[0].astype(dtype)
    cut = middle(len(leaves))
    return tree(leaves[:cut], dtype) + tree(leaves[cut:], dtype)


def complete_nodes(count: int, start: int, stop: int) -> list[tuple[int, int]]:
    """The largest nodes of the tree over [0, count) that lie inside [start, stop)."""

    def inside(low: int, high: int) -> list[tuple[int, int]]:
        if start <= low and high <= stop:
            return [(low, high)]
        if high <= start or stop <= low:
            return []
        cut = low + middle(high - low)
        return inside(low, cut) + inside(cut, high)

    return inside(0, count) if start < stop else []


def nodes_of(leaves: list[Array], start: int, stop: int) -> Array:
    """What a rank that owns leaves [start, stop) hands in: (k, *shape) float32."""
    found = [tree(leaves[a:b]) for a, b in complete_nodes(len(leaves), start, stop)]
    return np.stack(found) if found else np.empty((0, *leaves[0].shape), np.float32)


def values(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """Floats of very different sizes (so that every order of additions has its own bits), or
    integers over the whole range of their type."""
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return random.integers(limits.min, limits.max, shape, kind, endpoint=True)
    x: Array = random.standard_normal(shape) * 10.0 ** random.uniform(-3, 3, shape)
    return x.astype(kind)


def bits(x: Array) -> bytes:
    return np.ascontiguousarray(x).tobytes()


def assert_same(a: Array, b: Array, what: str) -> None:
    assert a.shape == b.shape, f"{what}: shapes {a.shape} and {b.shape}"
    assert a.dtype == b.dtype, f"{what}: types {a.dtype} and {b.dtype}"
    if bits(a) != bits(b):
        wrong = np.argwhere(a.reshape(-1) != b.reshape(-1))[:3].ravel().tolist()
        raise AssertionError(
            f"{what}: {np.count_nonzero(a != b)} of {a.size} differ, first at {wrong}: "
            f"{a.reshape(-1)[wrong]} instead of {b.reshape(-1)[wrong]}"
        )


def of_ranks(shape: tuple[int, ...], dtype: Any, size: int) -> list[Array]:
    return [values(shape, dtype, seed=rank + 1) for rank in range(size)]


def finish(result: Any) -> Array:
    return result.wait() if hasattr(result, "wait") else result


def skewed(n: int, size: int) -> list[int]:
    """Bounds with everything but a little on the last rank, and an empty rank before it."""
    cut = [0, *(min(rank, n) for rank in range(1, size)), n]
    if size > 2:
        cut[-2] = cut[-3]
    return cut
