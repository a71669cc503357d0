"""plait.matmul_all_reduce and its like where one kernel multiplies and communicates: the bits of
the separate steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from cases_device import BFLOAT16
from devices import SHARED, gpus, peers, same, there, values
from harness import case

import plait
from plait import backend
from plait.comm import Communicator, Leaves, products


@contextmanager
def worth_it(least: int) -> Iterator[None]:
    before, products.LEAST = products.LEAST, least
    try:
        yield
    finally:
        products.LEAST = before


def whole(rank: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """Small whole numbers, whose sums have the same bits in any order: ops are the CPU's here."""
    return np.rint(values(rank, shape, np.float32) / 30).astype(dtype)


def both(comm: Communicator, kind: str, multiply: Any, fused: bool = True) -> None:
    """multiply() by one kernel, or refused on all ranks, and by separate steps."""
    with worth_it(1 << 60):
        apart = backend.to_host(multiply())
    before = comm.tally[kind][0]
    with worth_it(0):
        found = multiply()
    assert comm.tally[kind][0] == before + fused, kind
    same(found, apart)


@case(ranks=(2, 3, 4), cuda=True)
def products_have_the_bits_of_the_separate_steps(world: Communicator) -> None:
    rank, size = world.rank, world.size
    for shared in SHARED:
        with gpus(world, shared, room=1 << 22):
            comm = peers(world)
            halves, uneven = (comm.with_leaves(Leaves.even(n, size)) for n in (2 * size, 5))
            for leaved, inside, dtype in (
                (comm, True, BFLOAT16),
                (halves, False, np.float32),
                (uneven, True, BFLOAT16),
            ):
                x = there(comm, whole(rank, (133, 64), BFLOAT16), inside)
                w = there(comm, whole(rank + 9, (64, 24), BFLOAT16), inside)
                one = leaved is not uneven  # node of the tree on each rank
                out, part = (
                    there(comm, np.zeros((m, 24), dtype), inside)
                    for m in (133, (rank + 1) * 133 // size - rank * 133 // size)
                )
                both(
                    leaved, "matmul_all_reduce",
                    partial(plait.matmul_all_reduce, x, w, leaved, out=out), one,
                )  # fmt: skip
                both(
                    leaved, "matmul_reduce_scatter",
                    partial(plait.matmul_reduce_scatter, x, w, leaved, out=part), one,
                )  # fmt: skip
                own = x[: 20 + rank]
                both(comm, "all_gather_matmul", partial(plait.all_gather_matmul, own, w, comm))
            # what one rank's arrays do not allow is done apart on all
            wide = there(comm, whole(rank, (64, 32), BFLOAT16), True)
            cut = wide[:, :24] if rank == 0 else w
            both(comm, "matmul_all_reduce", partial(plait.matmul_all_reduce, x, cut, comm), False)
            plain = [there(comm, whole(rank, s, np.float32), True) for s in ((9, 64), (64, 24))]
            both(comm, "all_gather_matmul", partial(plait.all_gather_matmul, *plain, comm), False)
            comm.close()
