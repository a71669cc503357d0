"""Every collective on every transport: the bits of the plain tree, for all types and odd sizes."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from harness import case
from reference import BFLOAT16, Array, assert_same, tree, values

from plait.comm import Communicator

SIZES = (0, 1, 7, 1000, 100003)
FLOATS = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))
INTEGERS = tuple(np.dtype(t) for t in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"))
RANKS = (1, 2, 3, 4)


def done(result: Any, blocking: bool) -> Array:
    return result if blocking else result.wait()


def of_ranks(shape: tuple[int, ...], dtype: Any, size: int) -> list[Array]:
    return [values(shape, dtype, seed=rank + 1) for rank in range(size)]


@case(RANKS)
def all_reduce_adds_floats_in_the_tree(world: Communicator) -> None:
    for n, dtype, blocking in product(SIZES, FLOATS, (True, False)):
        x = of_ranks((n,), dtype, world.size)
        found = done(world.all_reduce(x[world.rank].copy(), blocking=blocking), blocking)
        assert_same(found, tree(x).astype(dtype), f"{n} {dtype} blocking={blocking}")


@case(RANKS)
def all_reduce_of_integers(world: Communicator) -> None:
    for n, dtype, op in product(SIZES, INTEGERS, ("sum", "max", "min")):
        x = of_ranks((n,), dtype, world.size)
        found = world.all_reduce(x[world.rank].copy(), op)
        ufunc = {"sum": np.add, "max": np.maximum, "min": np.minimum}[op]
        assert_same(found, ufunc.reduce(x, dtype=dtype), f"{op} {n} {dtype}")
