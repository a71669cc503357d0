"""Collectives that only move bytes, messages, and Works in flight, on every transport."""

from __future__ import annotations

from itertools import product

import numpy as np
from harness import case
from reference import (
    MOVED,
    RANKS,
    SIZED,
    assert_same,
    finish,
    of_ranks,
    skewed,
    tree,
    values,
)
from transports import transports

from plait.comm import Communicator


@case((*RANKS, 6, 8))
def all_gather(world: Communicator) -> None:
    for comm, (n, dtype), blocking in product(transports(), SIZED, (True, False)):
        x = [value.astype(dtype) for value in of_ranks((n,), np.int8, comm.size)]
        found = finish(comm.all_gather(x[comm.rank], blocking=blocking))
        assert_same(found, np.concatenate(x), f"{comm.transport} {n} {dtype} {blocking}")


@case(RANKS)
def all_gather_along_any_axis(world: Communicator) -> None:
    for comm, axis, n in product(transports(), (-1, 0, 1, 2), (0, 1, 13)):
        shape = [4, 6, 5]
        shape[axis] = n
        whole = values(tuple(shape), np.float32, 3)
        for bounds in (tuple(skewed(n, comm.size)), (*range(comm.size), n)):
            if max(bounds) > n:
                continue
            own = whole.take(range(bounds[comm.rank], bounds[comm.rank + 1]), axis)
            out = np.empty((*whole.shape, 2), np.float32)[..., 0]
            what = f"{comm.transport} {axis} {n} {bounds}"
            assert_same(comm.all_gather(own, axis=axis, bounds=bounds), whole, what)
            assert comm.all_gather(own, axis=axis, bounds=bounds, out=out) is out
            assert_same(out, whole, what)


@case(RANKS)
def all_gather_from_its_own_place(world: Communicator) -> None:
    for comm, n in product(transports(), (12, 120_000)):
        whole = values((n,), np.float32, 3)
        bounds = [0, *(n // 2 + rank for rank in range(1, comm.size)), n]
        start, stop = bounds[comm.rank], bounds[comm.rank + 1]
        out = np.zeros(n, np.float32)
        out[start:stop] = whole[start:stop]
        assert comm.all_gather(out[start:stop], bounds=bounds, out=out) is out
        assert_same(out, whole, f"{comm.transport} {n} in place")
        out = np.zeros(n + 1, np.float32)
        out[1 + start : 1 + stop] = whole[start:stop]
        found = comm.all_gather(out[1 + start : 1 + stop], bounds=bounds, out=out[:-1])
        assert_same(found, whole, f"{comm.transport} {n} overlapping")


@case((*RANKS, 6))
def all_to_all(world: Communicator) -> None:
    for comm, rows, dtype in product(transports(), (0, 1, 3, 2000), MOVED):
        size, rank = comm.size, comm.rank

        def count(source: int, dest: int, rows: int = rows) -> int:
            return rows * ((source + 2 * dest) % 3)

        x = [
            values((sum(count(s, d) for d in range(size)), 2), np.int8, s + 1).astype(dtype)
            for s in range(size)
        ]
        bounds = [np.cumsum([0, *(count(s, d) for d in range(size))]) for s in range(size)]
        receives = np.cumsum([0, *(count(s, rank) for s in range(size))])
        wanted = [x[s][bounds[s][rank] : bounds[s][rank + 1]] for s in range(size)]
        for blocking in (True, False):
            found = finish(comm.all_to_all(x[rank], bounds[rank], receives, blocking=blocking))
            assert_same(found, np.concatenate(wanted), f"{comm.transport} {rows} {dtype}")


@case(RANKS)
def broadcast(world: Communicator) -> None:
    for comm, (n, dtype) in product(transports(), SIZED):
        for root in range(comm.size):
            wanted = values((n,), np.int8, root + 5).astype(dtype)
            x = wanted.copy() if comm.rank == root else np.zeros(n, dtype)
            assert finish(comm.broadcast(x, root, blocking=False)) is x
            assert_same(x, wanted, f"{comm.transport} {n} {dtype} {root}")
    for comm in transports():
        wide = np.full((50, 2), comm.rank, np.float32)
        comm.broadcast(wide[:, 1], comm.size - 1)
        assert (wide[:, 1] == comm.size - 1).all()
        assert (wide[:, 0] == comm.rank).all()


@case(RANKS)
def messages_around_the_ring(world: Communicator) -> None:
    for comm, (n, dtype) in product(transports(), SIZED):
        after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        sent = comm.send(np.full(n, comm.rank, dtype), after, tag=3, blocking=False)
        other = comm.send(np.full(n + 1, 9, dtype), after, tag=4, blocking=False)
        assert (comm.recv(np.zeros(n + 1, dtype), before, tag=4) == np.array(9, dtype)).all()
        work = comm.recv(np.zeros((n, 2), dtype)[:, 0], before, tag=3, blocking=False)
        assert_same(np.array(work.wait()), np.full(n, before, dtype), f"{comm.transport} {n}")
        sent.wait()
        other.wait()


@case(RANKS)
def messages_of_one_tag_arrive_in_order(world: Communicator) -> None:
    for comm in transports():
        after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        sent = [comm.send(np.full(n, n), after, blocking=False) for n in (5, 40_000, 1)]
        for n in (5, 40_000, 1):
            assert (comm.recv(np.zeros(n, np.int64), before) == n).all()
        for work in sent:
            work.wait()


@case((*RANKS, 6))
def many_works_at_once(world: Communicator) -> None:
    """Waited for in another order on every rank; their stages must not cross."""
    for comm in transports():
        x = [of_ranks((n,), np.float32, comm.size) for n in (50_000, 3, 20_000, 7, 9_000, 30_000)]
        works = []
        for values_ in x:
            works.append(
                (comm.all_reduce(values_[comm.rank].copy(), blocking=False), tree(values_))
            )
            whole = np.concatenate(values_)
            works.append((comm.all_gather(values_[comm.rank], blocking=False), whole))
        order = np.random.default_rng(comm.rank).permutation(len(works))
        assert_same(comm.all_reduce(x[0][comm.rank].copy()), tree(x[0]), "a blocking one meanwhile")
        for i in order:
            work, wanted = works[i]
            assert_same(work.wait(), wanted, f"{comm.transport} work {i}")
            assert work.test()
            assert_same(work.wait(), wanted, "waited for again")


@case((2, 4))
def a_wait_elsewhere_moves_a_started_collective_on(world: Communicator) -> None:
    """Rank 0 sends only when its all_reduce is done, while the others wait for that message."""
    for comm in transports():
        x = of_ranks((30_000,), np.float32, comm.size)
        work = comm.all_reduce(x[comm.rank].copy(), blocking=False)
        message = np.zeros(5, np.float32)
        if comm.rank == 0:
            assert_same(work.wait(), tree(x), "rank 0")
            for dest in range(1, comm.size):
                world.send(message + 7, dest)
        else:
            assert (world.recv(message, 0) == 7).all()
        assert_same(work.wait(), tree(x), f"{comm.transport}")


@case((2, 3))
def counts_above_the_limit_of_an_int_go_in_pieces(world: Communicator) -> None:
    from plait.comm import mpi

    limit, mpi.LIMIT = mpi.LIMIT, 700
    try:
        many_works_at_once(world)
        for comm, n in product(transports(), (0, 1, 699, 700, 701, 1400, 20_003)):
            what, size, rank = f"{comm.transport} {n}", comm.size, comm.rank
            x = of_ranks((n,), np.float32, size)
            assert_same(comm.all_reduce(x[rank].copy()), tree(x), f"{what} all_reduce")
            y = of_ranks((n,), np.int64, size)
            assert_same(comm.all_reduce(y[rank].copy()), np.add.reduce(y), f"{what} of int64")
            assert_same(comm.all_gather(x[rank]), np.concatenate(x), f"{what} all_gather")
            own = comm.broadcast(x[rank].copy(), size - 1)
            assert_same(own, x[size - 1], f"{what} broadcast")
            cut = np.linspace(0, n, size + 1).astype(int)
            lengths = [cut[rank + 1] - cut[rank]] * size
            got = comm.all_to_all(x[rank], cut, [0, *np.cumsum(lengths)])
            wanted = np.concatenate([value[cut[rank] : cut[rank + 1]] for value in x])
            assert_same(got, wanted, f"{what} all_to_all")
            sent = comm.send(x[rank], (rank + 1) % size, blocking=False)
            got = comm.recv(np.zeros(n, np.float32), (rank - 1) % size)
            assert_same(got, x[(rank - 1) % size], f"{what} messages")
            sent.wait()
    finally:
        mpi.LIMIT = limit


@case(RANKS)
def objects(world: Communicator) -> None:
    for comm in transports():
        for root in range(comm.size):
            value = {"rank": comm.rank, "text": "é" * 1000 * comm.rank}
            assert comm.broadcast_object(value, root)["text"] == "é" * 1000 * root
            found = comm.gather_object(value, root)
            if comm.rank == root:
                assert [v["rank"] for v in found] == list(range(comm.size))
            else:
                assert found is None
        assert comm.all_gather_object(comm.rank) == list(range(comm.size))


@case((*RANKS, 6))
def splits(world: Communicator) -> None:
    for comm in transports():
        color = comm.rank % 2
        part = comm.split(color, -comm.rank)
        members = [r for r in reversed(range(comm.size)) if r % 2 == color]
        assert (part.size, part.rank) == (len(members), members.index(comm.rank))
        assert part.leaves.count == part.size
        x = of_ranks((3000,), np.float32, comm.size)
        wanted = tree([x[r] for r in members])
        assert_same(part.all_reduce(x[comm.rank].copy()), wanted, comm.transport)
        again = part.split(0)
        assert_same(again.all_reduce(x[comm.rank].copy()), wanted, f"{comm.transport} of a split")
        first = comm.split(0 if comm.rank == 0 else None)
        assert (first is None) == (comm.rank > 0)
        comm.barrier()


@case(RANKS)
def calls_and_bytes_are_counted(world: Communicator) -> None:
    for comm in transports():
        comm.reset_tally()
        comm.all_reduce(np.zeros(10, np.float32))
        comm.all_reduce(np.zeros(5, np.float32))
        comm.all_gather(np.zeros((2, 3), np.float32), blocking=False).wait()
        assert comm.tally["all_reduce"] == [2, 60]
        assert comm.tally["all_gather"] == [1, 24]


@case((2, 3), limit=30.0)
def a_split_holds_up_no_collective(world: Communicator) -> None:
    """Some ranks wait for a started one before the split, the others after it."""
    for found in transports():
        x = np.full(100_000, found.rank + 1, np.float32)
        work = found.all_reduce(x, blocking=False)
        if found.rank == 1:
            work.wait()
        part = found.split(0)
        total = work.wait()
        assert (total == found.size * (found.size + 1) / 2).all()
        assert part is not None
        assert part.size == found.size
