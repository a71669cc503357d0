"""Products and updates fused with collectives: the bits of one rank that computes all leaves, or of
one step after the other; and what they refuse."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
from harness import case
from reference import Array, tree
from transports import transports

import plait
from plait.backend import bfloat16, float32, kernels
from plait.comm import Communicator, Leaves
from plait.comm.alone import Alone
from plait.optim import SGD, AdamW


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


def random_operands(m: int, k: int, n: int, dtype: Any, seed: int = 0) -> tuple[Array, Array]:
    random = np.random.default_rng([seed, m, k, n])
    x, w = (random.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n)))
    return x, w


@case((1, 2, 3, 4), limit=60.0)
def matmul_reduce_scatter_is_that_of_one_rank(world: Communicator) -> None:
    for base, (m, n), axis in product(transports(), [(5, 7), (300, 64)], (0, 1)):
        for dtype, count in product((float32, bfloat16), (base.size, 2 * base.size + 1)):
            comm = base.with_leaves(Leaves.even(count, base.size))
            x, w = random_operands(m, 19 * count, n, dtype)
            mine = slice(*(19 * bound for bound in comm.leaves.bounds[comm.rank :][:2]))
            whole = plait.matmul_all_reduce(x, w, Alone().with_leaves(Leaves.even(count, 1)))
            length = whole.shape[axis]
            own = range(*(r * length // base.size for r in (base.rank, base.rank + 1)))
            expected = whole.take(own, axis)
            for out in (None, comm.empty(expected.shape, dtype)):
                found = plait.matmul_reduce_scatter(x[:, mine], w[mine], comm, axis=axis, out=out)
                assert out is None or found is out
                assert found.tobytes() == expected.tobytes(), (base.transport, m, n, axis, dtype)


@case((1, 2, 3, 4), limit=60.0)
def all_gather_matmul_is_that_of_one_rank(world: Communicator) -> None:
    """Few and many rows, unequal on ranks, none on one; every rank has a w of its own width."""
    for comm, each, dtype in product(transports(), (3, 150), (float32, bfloat16)):
        rows = [each * (2 * rank + (comm.size == 1)) for rank in range(comm.size)]
        x, w = random_operands(sum(rows), 37, 30, dtype)
        w = w[:, : 20 + comm.rank].copy()
        start = sum(rows[: comm.rank])
        expected = plait.matmul_all_reduce(x, w, Alone())
        for make in (np.empty, comm.empty):
            mine = make((rows[comm.rank], 37), dtype)
            mine[:] = x[start:][: len(mine)]
            found = plait.all_gather_matmul(mine, w, comm)
            mine[:] = np.nan  # it is this rank's again
            assert found.tobytes() == expected.tobytes(), (comm.transport, each, dtype)
            out = np.empty((sum(rows), w.shape[1]), float32)[:, ::-1]
            mine[:] = x[start:][: len(mine)]
            assert plait.all_gather_matmul(mine, w, comm, out) is out
            assert out.astype(dtype).tobytes() == expected.tobytes()


@case(2)
def rows_are_not_taken_for_messages(world: Communicator) -> None:
    for comm in transports():
        x, message = np.ones((300, 4), float32), np.zeros((300, 4), float32)
        expected = comm.recv(message, 1 - comm.rank, tag=1, blocking=False)
        assert (plait.all_gather_matmul(x, np.eye(4, dtype=float32), comm) == 1).all()
        comm.send(7 * x, 1 - comm.rank, tag=1)
        assert (expected.wait() == 7).all()


@case((2, 3))
def nothing_to_add_is_zero(world: Communicator) -> None:
    for comm in transports():
        for make in (np.empty, comm.empty):
            found = plait.all_gather_matmul(
                make((300, 0), float32), np.empty((0, 5), float32), comm
            )
            assert found.shape == (300 * comm.size, 5)
            assert not found.any()


@case((1, 2, 3, 4), limit=60.0)
def reduce_update_gather_is_reduce_then_update_then_gather(world: Communicator) -> None:
    for comm, n, dtype, optimizer in product(
        transports(), (7, 300_001), (float32, bfloat16), (AdamW(), SGD())
    ):
        random = np.random.default_rng(n)
        start, stop = (r * n // comm.size for r in (comm.rank, comm.rank + 1))
        master = random.standard_normal(n, float32)
        results = []
        for make in (np.empty, comm.empty, None):
            grad, weight = (
                (np.empty if make is None else make)(n, float32),
                (make or np.empty)(n, dtype),
            )
            weight[:] = master
            own = master[start:stop].copy()
            state = {name: np.zeros(stop - start, float32) for name in optimizer.state}
            for step in (1, 2):
                grad[:] = np.random.default_rng([step, comm.rank]).standard_normal(n, float32)
                settings = {"step": step, "scale": 1 / comm.size, "learning_rate": 0.1 / step}
                if make is None:
                    total = comm.reduce_scatter(grad)
                    optimizer.update(
                        total, 1 / comm.size, 0.1 / step, True, step, own, state, weight[start:stop]
                    )
                    comm.all_gather(
                        weight[start:stop].copy(),
                        bounds=[r * n // comm.size for r in range(comm.size + 1)],
                        out=weight,
                    )
                else:
                    found = plait.reduce_update_gather(
                        grad, weight, own, state, comm, optimizer, **settings
                    )
                    assert found is weight
                    grad[:] = np.nan  # nobody reads it any more
            results.append(
                [weight.tobytes(), own.tobytes(), *(s.tobytes() for s in state.values())]
            )
        assert results[0] == results[1] == results[2], (comm.transport, n, dtype)
        assert not (weight == master.astype(dtype)).all()


@case((2, 3), limit=30.0)
def what_one_rank_gives_wrong_is_told_on_all(world: Communicator) -> None:
    """ValueError on every rank, whatever connects them, and the communicator goes on."""
    odd = world.rank == 1
    x, w = np.ones((4, 6), float32), np.ones((6, 5), float32)
    n = np.ones(12, float32)
    weight = np.ones(12, float32)
    own = n[: 12 // world.size].copy()
    state = {"first": own.copy(), "second": own.copy()}

    for comm in transports():
        first = partial(plait.matmul_all_reduce, comm=comm)
        scatter = partial(plait.matmul_reduce_scatter, comm=comm)
        gather = partial(plait.all_gather_matmul, comm=comm)
        update = partial(plait.reduce_update_gather, comm=comm, optimizer=AdamW(), step=1)
        small, cut = np.empty((1, 1), float32), x[:, :5]
        low = x.astype(bfloat16), w.astype(bfloat16)
        calls = [
            (r"\(M, N\)", partial(first, x[: 3 if odd else 4], w)),
            ("do not match", partial(first, x, w[: 5 if odd else 6])),
            ("bfloat16", partial(scatter, x, w.astype(bfloat16) if odd else w)),
            ("axis", partial(scatter, x, w, axis=2 if odd else 0)),
            ("axis", partial(scatter, x, w, axis=int(odd))),
            ("writable out", partial(first, x, w, out=small if odd else None)),
            ("result ", partial(first, *low, out=None if odd else np.empty((4, 5), float32))),
            ("K ", partial(gather, cut if odd else x, w[:5] if odd else w)),
            ("writable out", partial(gather, x, w, out=small if odd else None)),
            ("grad |weight is", partial(update, n[:11] if odd else n, weight, own, state)),
            ("master", partial(update, n, weight, own[:1] if odd else own, state)),
            ("weight is", partial(update, n, n.astype("f2") if odd else weight, own, state)),
            ("state has", partial(update, n, weight, own, {} if odd else state)),
        ]
        for text, call in calls:
            with pytest.raises(ValueError, match=text) as caught:
                call()
            assert odd or "rank 1" in str(caught.value), (text, caught.value)
        assert comm.all_reduce(np.ones(3, float32))[0] == comm.size
