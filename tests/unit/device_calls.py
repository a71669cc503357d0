"""Collectives of all ranks of device_ranks.py: their calls, and what is in their arrays then."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from device_ranks import Ranks, even, leaves_of, tree_of
from kernel_backends import kernels

from plait import _cpu

RNG = np.random.default_rng(5)
Arrays = list[list[Any]]  # of each rank


@dataclass
class Collective:
    """sources, outs: arrays of the device that it reads, and in which its results are; draw() gives
    what the sources may hold, want() of that what the outs must hold then."""

    calls: list[Any]
    sources: Arrays
    outs: Arrays
    draw: Callable[[], Arrays]
    want: Callable[[Arrays], Arrays]

    def put(self, rank: int, given: Arrays) -> None:
        """given: on the device, so that nothing is allocated while another rank's kernel waits."""
        for x, value in zip(self.sources[rank], given[rank], strict=True):
            x[...] = value

    def fill(self, ranks: Ranks) -> tuple[Arrays, Arrays]:
        """New values in all sources: as arrays of the device, and what the outs must hold then."""
        given = self.draw()
        there = [[ranks.xp.asarray(value) for value in mine] for mine in given]
        for rank in range(ranks.size):
            self.put(rank, there)
        return there, self.want(given)

    def holds(self, ranks: Ranks, rank: int, wanted: Arrays) -> bool:
        pairs = zip(self.outs[rank], wanted[rank], strict=True)
        return all(ranks.get(x).tobytes() == value.tobytes() for x, value in pairs)

    def check(self, ranks: Ranks, number: int = 0) -> None:
        """Once, on all ranks."""
        _, wanted = self.fill(ranks)
        ranks.collect(self.calls, number)
        for rank in range(ranks.size):
            assert self.holds(ranks, rank, wanted), rank


@contextmanager
def fiber_order(order: int) -> Iterator[None]:
    found = kernels("cuda")
    change = getattr(found, "set_fiber_order", lambda _: None)
    change(order)
    try:
        yield
    finally:
        change(0)


def some_bytes(n: int) -> np.ndarray:
    return RNG.integers(0, 256, n, np.uint8)


def floats(n: int) -> np.ndarray:
    return RNG.standard_normal(n, np.float32)


def all_gather(
    ranks: Ranks, lengths: list[int], inside: bool, in_place: bool = False, number: int = 0
) -> Collective:
    bounds = [0, *itertools.accumulate(lengths)]
    outs = [ranks.empty(rank, (bounds[-1],), np.uint8, inside=inside) for rank in range(ranks.size)]
    sources = [
        out[bounds[rank] : bounds[rank + 1]]
        if in_place
        else ranks.empty(rank, (lengths[rank],), np.uint8, inside=inside)
        for rank, out in enumerate(outs)
    ]
    calls = [
        window.all_gather(x, lengths, out)
        for window, x, out in zip(ranks.sets[number], sources, outs, strict=True)
    ]
    return Collective(
        calls, [[x] for x in sources], [[x] for x in outs],
        lambda: [[some_bytes(n)] for n in lengths],
        lambda given: [[np.concatenate([x for (x,) in given])]] * ranks.size,
    )  # fmt: skip


def all_to_all(ranks: Ranks, counts: np.ndarray, inside: bool, number: int = 0) -> Collective:
    """counts[from, to] bytes."""
    calls, sources, outs = [], [], []
    sends = [[0, *itertools.accumulate(row)] for row in counts.tolist()]
    for rank, window in enumerate(ranks.sets[number]):
        receives = [0, *itertools.accumulate(counts[:, rank].tolist())]
        sources.append([ranks.empty(rank, (sends[rank][-1],), np.uint8, inside=inside)])
        outs.append([ranks.empty(rank, (receives[-1],), np.uint8, inside=inside)])
        calls.append(window.all_to_all(sources[-1][0], sends[rank], outs[-1][0], receives))

    def want(given: Arrays) -> Arrays:
        pieces = [np.split(x, bounds[1:-1]) for (x,), bounds in zip(given, sends, strict=True)]
        return [[np.concatenate([row[rank] for row in pieces])] for rank in range(ranks.size)]

    return Collective(calls, sources, outs, lambda: [[some_bytes(b[-1])] for b in sends], want)


def broadcast(ranks: Ranks, n: int, root: int, inside: bool, number: int = 0) -> Collective:
    outs = [[ranks.empty(rank, (n,), np.uint8, inside=inside)] for rank in range(ranks.size)]
    calls = [
        window.broadcast(x, root) for window, (x,) in zip(ranks.sets[number], outs, strict=True)
    ]
    sources = [x if rank == root else [] for rank, x in enumerate(outs)]
    return Collective(
        calls, sources, outs,
        lambda: [[some_bytes(n)] if rank == root else [] for rank in range(ranks.size)],
        lambda given: [given[root]] * ranks.size,
    )  # fmt: skip


def barrier(ranks: Ranks, number: int = 0) -> Collective:
    none: Arrays = [[] for _ in range(ranks.size)]
    calls = [window.barrier() for window in ranks.sets[number]]
    return Collective(calls, none, none, lambda: none, lambda _: none)


def reduction(ranks: Ranks, n: int, gather: bool, inside: bool, number: int = 0) -> Collective:
    """A sum of float32."""
    counts, merges = leaves_of(ranks.size)
    bounds = even(n, ranks.size)
    spec = ranks.module.ReduceSpec(counts, merges, bounds, 1, "sum", gather)
    calls, sources, outs = [], [], []
    for rank, window in enumerate(ranks.sets[number]):
        length = n if gather else bounds[rank + 1] - bounds[rank]
        sources.append([ranks.empty(rank, (n,), np.float32, inside=inside)])
        outs.append([ranks.empty(rank, (length,), np.float32, inside=inside)])
        calls.append(window.reduction(sources[-1][0], spec, None, outs[-1][0]))

    def want(given: Arrays) -> Arrays:
        whole = tree_of([x for (x,) in given], merges, None, np.float32)
        if gather:
            return [[whole]] * ranks.size
        return [[whole[bounds[rank] : bounds[rank + 1]]] for rank in range(ranks.size)]

    return Collective(calls, sources, outs, lambda: [[floats(n)] for _ in range(ranks.size)], want)


def update(ranks: Ranks, n: int, summed: bool, inside: bool, number: int = 0) -> Collective:
    """AdamW's step of each rank's slice, and the new weights to all: of gradients that are to be
    summed first, or that are."""
    settings = (0.5, 1e-3, 0.9, 0.99, 1e-8, 0.1, 3)
    counts, merges = leaves_of(ranks.size)
    bounds = even(n, ranks.size)
    lengths = [bounds[rank + 1] - bounds[rank] for rank in range(ranks.size)]
    spec = ranks.module.ReduceSpec(counts, merges, bounds, 1, "sum", True)
    calls, sources, outs = [], [], []
    for rank, window in enumerate(ranks.sets[number]):
        length = lengths[rank]
        shard = [ranks.empty(rank, (length,), np.float32, inside=False) for _ in "mfs"]
        weight = ranks.empty(rank, (n,), np.float32, inside=inside)
        grad = ranks.empty(rank, (length if summed else n,), np.float32, inside=inside)
        adamw = (*settings, *shard)
        calls.append(
            window.update_gather(grad, bounds, adamw, weight)
            if summed
            else window.reduce_update_gather(grad[None], spec, adamw, weight)
        )
        sources.append([grad, *shard])
        outs.append([weight, *shard])

    def draw() -> Arrays:
        return [
            [floats(m if summed else n), *(RNG.random(m, np.float32) for _ in "mfs")]
            for m in lengths
        ]

    def want(given: Arrays) -> Arrays:
        grads = [x[0] for x in given]
        whole = np.concatenate(grads) if summed else tree_of(grads, merges, None, np.float32)
        shards = [[x.copy() for x in mine[1:]] for mine in given]
        news = [np.empty(m, np.float32) for m in lengths]
        for rank, mine in enumerate(shards):
            own = whole[bounds[rank] : bounds[rank + 1]]
            _cpu.adamw(own, *settings, *mine, news[rank])
        return [[np.concatenate(news), *mine] for mine in shards]

    return Collective(calls, sources, outs, draw, want)


def mixed(ranks: Ranks, chance: random.Random, number: int = 0) -> Collective:
    """Any kind, of up to 6000 bytes."""
    n = chance.choice((0, 1, 9, 64, 200, 700, 1500))
    inside = chance.random() < 0.5
    kind = chance.randrange(6)
    if kind == 0:
        return broadcast(ranks, n, chance.randrange(ranks.size), inside, number)
    if kind == 1:
        lengths = [chance.randrange(n + 1) for _ in range(ranks.size)]
        return all_gather(ranks, lengths, inside, False, number)
    if kind == 2:
        counts = [[chance.randrange(n + 1) for _ in range(ranks.size)] for _ in range(ranks.size)]
        return all_to_all(ranks, np.array(counts), inside, number)
    if kind == 3:
        return barrier(ranks, number)
    return reduction(ranks, n, kind == 4, inside, number)


def queue_mixed(ranks: Ranks, chance: random.Random, calls: int, together: int = 120) -> None:
    """So many mixed calls, one behind the other: `together` of them are queued by ranks that do not
    wait for each other nor for their own device, then all results are compared."""
    start = list(ranks.used)
    for first in range(0, calls, together):
        ranks.used = list(start)
        prepared = [mixed(ranks, chance) for _ in range(min(together, calls - first))]
        wanted = [each.fill(ranks)[1] for each in prepared]

        def work(rank: int, prepared: list[Collective] = prepared) -> None:
            for each in prepared:
                ranks.windows[rank].launch(each.calls[rank])

        assert ranks.run(work) == [None] * ranks.size
        for window in ranks.windows:
            window.check()
        for number, (each, values) in enumerate(zip(prepared, wanted, strict=True)):
            for rank in range(ranks.size):
                assert each.holds(ranks, rank, values), (first + number, rank)
