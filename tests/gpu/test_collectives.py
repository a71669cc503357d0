"""Collectives between GPUs at the numbers and sizes of real use, ranks as streams of one process:
all of it on a GPU and with --long, else a part, on fibers. (tests/mpi/cases_peer_scale.py has ranks
as processes.)"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np
import pytest
from device_calls import (
    Collective,
    all_gather,
    all_to_all,
    barrier,
    broadcast,
    fiber_order,
    mixed,
    queue_mixed,
    reduction,
    update,
)
from device_ranks import Ranks

pytestmark = pytest.mark.cuda

GPU = importlib.util.find_spec("plait._cuda") is not None
LONG = () if GPU else (pytest.mark.long,)


def every_kind(ranks: Ranks, n: int) -> Iterator[Collective]:
    """Of n floats or 4 n bytes, in arenas and elsewhere; of bytes not all ranks have as many."""
    size, all_bytes = ranks.size, 4 * n
    lengths = [all_bytes * (rank + 1) // size for rank in range(size)]
    sent = [[all_bytes * (1 + (a + b) % 3) // (3 * size) for b in range(size)] for a in range(size)]
    for inside in (True, False):
        yield reduction(ranks, n, True, inside)
        yield reduction(ranks, n, False, inside)
        yield all_gather(ranks, lengths, inside)
        yield all_gather(ranks, lengths, inside, in_place=True)
        yield all_to_all(ranks, np.array(sent), inside)
        yield broadcast(ranks, all_bytes, size - 1, inside)
        yield update(ranks, n, False, inside)
        yield update(ranks, n, True, inside)
    yield barrier(ranks)


SIZES = [
    *product((1, 2, 4, 8), (1, 1003)),
    (2, (1 << 18) + 1),
    *(pytest.param(size, (1 << 18) + 1, marks=LONG) for size in (1, 4, 8)),
    pytest.param(2, 1 << 24, marks=LONG),
    *(pytest.param(size, 1 << (24 if GPU else 22), marks=LONG) for size in (4, 8)),
]


@pytest.mark.parametrize(("size", "n"), SIZES)
def test_sizes_from_one_element_to_64_megabytes(size: int, n: int) -> None:
    """With the staging buffers, the grid and the thresholds of real use."""
    ranks = Ranks(size, arena=(32 << 20) + 24 * n, staging=8 << 20, blocks=0, work=None)
    for window in ranks.windows:
        window.set_deadline(60.0)
    start = list(ranks.used)
    for each in every_kind(ranks, n):
        each.check(ranks)
        ranks.used = list(start)
    ranks.close()


@pytest.mark.parametrize("size", [pytest.param(size, marks=LONG) for size in (2, 4)])
def test_ten_thousand_mixed_calls(size: int) -> None:
    ranks = Ranks(size, once=1000, staging=2048, blocks=3, arena=4 << 20)
    with fiber_order(size):
        queue_mixed(ranks, random.Random(size), 10_000)
    ranks.close()


@pytest.mark.parametrize("replays", [*[12] * (not GPU), pytest.param(1000, marks=LONG)])
def test_graphs_of_every_kind_replayed_with_other_inputs(replays: int) -> None:
    """Each rank replays its own between calls that are in none, the first of them on another stream
    than the graph's."""
    ranks = Ranks(3, once=500)
    recorded = [*every_kind(ranks, 60), *every_kind(ranks, 400)]
    apart = [reduction(ranks, 100, True, True), all_gather(ranks, [7, 0, 500], False)]
    every = recorded + apart
    turns = [[each.fill(ranks) for each in every] for _ in range(3)]

    def replay(rank: int) -> None:
        window = ranks.windows[rank]

        def launch(calls: list[Collective]) -> None:
            for each in calls:
                window.launch(each.calls[rank])

        other = ranks.stream()
        with ranks.on(rank, other):
            launch(apart)
            other.synchronize()
        graph = ranks.capture(rank, lambda: launch(recorded))
        for number in range(replays):
            turn = turns[number % len(turns)]
            for each, (given, _) in zip(every, turn, strict=True):
                each.put(rank, given)
            graph.launch()
            launch(apart)
            for which, (each, (_, wanted)) in enumerate(zip(every, turn, strict=True)):
                assert each.holds(ranks, rank, wanted), (number, which, rank)

    with fiber_order(3):
        assert ranks.run(replay, limit=500.0) == [None] * 3
    for window in ranks.windows:
        window.check()
    ranks.close()


def test_one_communicator_used_from_two_streams() -> None:
    """Each rank goes from one to the other where it likes; the calls stay in order, by events."""
    ranks = Ranks(2, once=500, arena=4 << 20)
    others = [ranks.stream() for _ in range(2)]
    chance = random.Random(3)
    prepared = [mixed(ranks, chance) for _ in range(200)]
    wanted = [each.fill(ranks)[1] for each in prepared]
    waits_of = getattr(ranks.module, "stream_waits", None)  # on fibers
    before = len(waits_of()) if waits_of else 0

    def work(rank: int) -> list[int]:
        own, taken = random.Random(rank), []
        for each in prepared:
            stream = own.choice((ranks.streams[rank], others[rank]))
            with ranks.on(rank, stream):
                ranks.windows[rank].launch(each.calls[rank])
            taken.append(stream.ptr)
        others[rank].synchronize()
        return taken

    found = ranks.run(work)
    for rank, window in enumerate(ranks.windows):
        assert isinstance(found[rank], list), found[rank]
        window.check()
        for number, (each, values) in enumerate(zip(prepared, wanted, strict=True)):
            assert each.holds(ranks, rank, values), (number, rank)
        if waits_of:
            ours = [(to, of) for to, of in waits_of()[before:] if to in found[rank]]
            assert ours == [(to, of) for of, to in pairwise(found[rank]) if of != to]
            assert len(ours) > 50
    ranks.close()
