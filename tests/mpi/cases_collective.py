"""matmul_all_reduce over ranks has the bits of one rank that computes all leaves."""

from __future__ import annotations

from itertools import product

import numpy as np
from harness import case
from reference import Array, tree

import plait
from plait.backend import bfloat16, float32, kernels
from plait.comm import Communicator, Leaves
from plait.comm.alone import Alone


@case((1, 2, 3, 4), limit=60.0)
def matmul_all_reduce_is_that_of_one_rank(world: Communicator) -> None:
    size = world.size
    for (m, n), each, dtype in product([(1, 1), (37, 70)], (0, 53), (float32, bfloat16)):
        for count in (size, 2 * size + 1):
            comm = world.with_leaves(Leaves.even(count, size))
            random = np.random.default_rng([m, n, each])
            x = random.standard_normal((m, each * count)).astype(dtype)
            w = random.standard_normal((each * count, n)).astype(dtype)
            one = Alone().with_leaves(Leaves.even(count, 1))
            mine = slice(*(each * bound for bound in comm.leaves.bounds[comm.rank :][:2]))
            for kind in dict.fromkeys((dtype, float32)):  # in one order on all ranks
                out = np.empty((m, n), kind)
                expected = plait.matmul_all_reduce(x, w, one, out)
                outs = [None if kind == dtype else np.empty((m, n), kind), comm.empty((m, n), kind)]
                if comm.rank % 2:  # where a rank's array lies is its own affair
                    outs.reverse()
                for given in (*outs, np.empty((n, m), kind).T):
                    found = plait.matmul_all_reduce(x[:, mine], w[mine], comm, given)
                    assert given is None or found is given
                    assert found.dtype == kind
                    assert found.tobytes() == expected.tobytes(), (m, n, each, count)


@case((2, 3))
def uneven_columns_add_up(world: Communicator) -> None:
    """K may differ between ranks, and be 0 on one: each rank's product is a leaf of the tree."""

    def operands(rank: int) -> list[Array]:
        shapes = (6, 11 * rank), (11 * rank, 5)
        random = np.random.default_rng(rank)
        return [random.standard_normal(shape).astype(np.float32) for shape in shapes]

    parts = []
    for x, w in map(operands, range(world.size)):
        parts.append(np.empty((6, 5), np.float32))
        kernels.matmul(x, w, False, False, [0, len(w)], False, 0, None, parts[-1])
    found = plait.matmul_all_reduce(*operands(world.rank), world)
    assert found.tobytes() == tree(parts).tobytes()
