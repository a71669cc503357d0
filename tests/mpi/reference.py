"""The tree's sum in plain numpy, written from its definition and not from the code under test."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def middle(count: int) -> int:
    """The largest power of two below count."""
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def tree(leaves: list[Array]) -> Array:
    """Float32 sum of leaves by the tree that splits at the largest power of two below n."""
    if len(leaves) == 1:
        return leaves[0].astype(np.float32)
    cut = middle(len(leaves))
    return tree(leaves[:cut]) + tree(leaves[cut:])


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
    x = random.standard_normal(shape) * 10.0 ** random.uniform(-3, 3, shape)
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
