"""Windows of a device: what moves, and what comes one after another."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from device_ranks import Ranks, even, leaves_of, tree_of
from kernel_backends import kernels

pytestmark = pytest.mark.cuda

RNG = np.random.default_rng(5)


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


# --- one collective: calls of all ranks, and what their arrays must be then -----------------------

Expected = list[tuple[Any, bytes]]


def all_gather(
    ranks: Ranks, lengths: list[int], inside: bool, in_place: bool = False, number: int = 0
) -> tuple[list[Any], Expected]:
    pieces = [some_bytes(n) for n in lengths]
    bounds = [0, *itertools.accumulate(lengths)]
    calls, found = [], []
    for rank, window in enumerate(ranks.sets[number]):
        out = ranks.empty(rank, (bounds[-1],), np.uint8, inside=inside)
        if in_place:
            x = out[bounds[rank] : bounds[rank + 1]]
            x[...] = ranks.xp.asarray(pieces[rank])
        else:
            x = ranks.put(rank, pieces[rank], inside=inside)
        calls.append(window.all_gather(x, lengths, out))
        found.append((out, b"".join(p.tobytes() for p in pieces)))
    return calls, found


def all_to_all(
    ranks: Ranks, counts: np.ndarray, inside: bool, number: int = 0
) -> tuple[list[Any], Expected]:
    """counts[from, to] bytes."""
    pieces = [[some_bytes(n) for n in row] for row in counts.tolist()]
    calls, found = [], []
    for rank, window in enumerate(ranks.sets[number]):
        sends, receives = (
            [0, *itertools.accumulate(c.tolist())] for c in (counts[rank], counts[:, rank])
        )
        x = ranks.put(rank, np.concatenate([*pieces[rank], some_bytes(0)]), inside=inside)
        out = ranks.empty(rank, (receives[-1],), np.uint8, inside=inside)
        calls.append(window.all_to_all(x, sends, out, receives))
        found.append((out, b"".join(row[rank].tobytes() for row in pieces)))
    return calls, found


def broadcast(
    ranks: Ranks, n: int, root: int, inside: bool, number: int = 0
) -> tuple[list[Any], Expected]:
    piece = some_bytes(n)
    calls, found = [], []
    for rank, window in enumerate(ranks.sets[number]):
        x = (
            ranks.put(rank, piece, inside=inside)
            if rank == root
            else ranks.empty(rank, (n,), np.uint8, inside=inside)
        )
        calls.append(window.broadcast(x, root))
        found.append((x, piece.tobytes()))
    return calls, found


def reduction(
    ranks: Ranks, n: int, gather: bool, inside: bool, number: int = 0
) -> tuple[list[Any], Expected]:
    counts, merges = leaves_of(ranks.size)
    bounds = even(n, ranks.size)
    arrays = [RNG.standard_normal(n).astype(np.float32) for _ in range(ranks.size)]
    whole = tree_of(arrays, merges, None, np.float32)
    spec = ranks.module.ReduceSpec(counts, merges, bounds, 1, "sum", gather)
    calls, found = [], []
    for rank, window in enumerate(ranks.sets[number]):
        low, high = (0, n) if gather else bounds[rank : rank + 2]
        x = ranks.put(rank, arrays[rank], inside=inside)
        out = ranks.empty(rank, (high - low,), np.float32, inside=inside)
        calls.append(window.reduction(x, spec, None, out))
        found.append((out, whole[low:high].tobytes()))
    return calls, found


def check(ranks: Ranks, prepared: tuple[list[Any], Expected], number: int = 0) -> None:
    calls, found = prepared
    ranks.collect(calls, number)
    for rank, (out, want) in enumerate(found):
        assert ranks.get(out).tobytes() == want, rank


# --- moves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_moves_bring_every_byte_where_it_belongs(size: int) -> None:
    for once, split in ((None, False), (0, False), (None, True)):
        ranks = Ranks(size, once=once, split=split)
        for n, inside in itertools.product((0, 1, 37, 1024, 5003), (True, False)):
            check(ranks, all_gather(ranks, [n] * size, inside))
            check(
                ranks, all_gather(ranks, [(n * (rank + 1)) // size for rank in range(size)], inside)
            )
            check(ranks, all_gather(ranks, [n] * size, inside, in_place=True))
            check(ranks, broadcast(ranks, n, size - 1, inside))
            check(ranks, all_to_all(ranks, np.full((size, size), n // size), inside))
            check(ranks, all_to_all(ranks, RNG.integers(0, n // size + 1, (size, size)), inside))
            ranks.used = [ranks.used[0] - ranks.used[0] % 16 + n % 2] * size  # odd addresses, too
        ranks.collect([window.barrier() for window in ranks.windows])
        ranks.close()


# --- one after another ----------------------------------------------------------------------------


def mixed(ranks: Ranks, chance: random.Random, number: int = 0) -> tuple[list[Any], Expected]:
    n = chance.choice((0, 1, 9, 64, 200, 700, 1500))
    inside = chance.random() < 0.5
    kind = chance.randrange(6)
    if kind == 0:
        return broadcast(ranks, n, chance.randrange(ranks.size), inside, number)
    if kind == 1:
        return all_gather(
            ranks, [chance.randrange(n + 1) for _ in range(ranks.size)], inside, False, number
        )
    if kind == 2:
        counts = [[chance.randrange(n + 1) for _ in range(ranks.size)] for _ in range(ranks.size)]
        return all_to_all(ranks, np.array(counts), inside, number)
    if kind == 3:
        return [window.barrier() for window in ranks.sets[number]], []
    return reduction(ranks, n, kind == 4, inside, number)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4, 5])
def test_hundreds_of_mixed_calls_queued_by_ranks_that_do_not_wait_for_each_other(
    order: int,
) -> None:
    chance = random.Random(order)
    size = (2, 3, 4, 2, 3, 8)[order]
    ranks = Ranks(
        size,
        once=chance.choice((100, 2000)),
        staging=2048,
        blocks=(1, 2, 3, 4)[order % 4],
        arena=4 << 20,
    )
    prepared = [mixed(ranks, chance) for _ in range(60 if size == 8 else 120)]
    with fiber_order(order):

        def work(rank: int) -> None:
            for calls, _ in prepared:
                ranks.windows[rank].launch(calls[rank])

        assert ranks.run(work) == [None] * size
    for window in ranks.windows:
        window.check()
    for (_, found), (rank, _) in itertools.product(prepared, enumerate(ranks.windows)):
        if found:
            assert ranks.get(found[rank][0]).tobytes() == found[rank][1]
    ranks.close()


@pytest.mark.parametrize("order", [0, 2, 3])
def test_the_same_calls_replayed_as_a_graph_would(order: int) -> None:
    """Nothing of a call changes between launches: epochs, numbers, parities are in memory."""
    ranks = Ranks(3, once=500)
    prepared = [
        reduction(ranks, 100, True, True),
        reduction(ranks, 900, True, True),
        all_gather(ranks, [5, 70, 0], True),
    ]
    with fiber_order(order):

        def work(rank: int) -> None:
            for _, (calls, _) in itertools.product(range(50), prepared):
                ranks.windows[rank].launch(calls[rank])

        assert ranks.run(work) == [None] * 3
    for calls, found in prepared:
        check(ranks, (calls, found))
    ranks.close()


@pytest.mark.parametrize("order", [0, 2, 3, 4])
@pytest.mark.parametrize("once", [None, 0])
def test_inputs_are_the_callers_again_when_its_own_call_is_done(
    order: int, once: int | None
) -> None:
    """Every rank writes over its input at once, and the peers still get what was there."""
    ranks = Ranks(3, once=once, staging=2048)
    n = 300
    prepared = [reduction(ranks, n, False, inside) for inside in (True, False)]
    prepared += [reduction(ranks, n, True, True), broadcast(ranks, n, 1, True)]
    prepared += [all_gather(ranks, [n] * 3, inside) for inside in (True, False)]
    prepared += [all_to_all(ranks, np.full((3, 3), n), inside) for inside in (True, False)]
    sources = [[ranks.get(call.arrays[0]).copy() for call in calls] for calls, _ in prepared]
    with fiber_order(order):

        def turn(rank: int, which: int) -> None:
            calls, found = prepared[which]
            x = calls[rank].arrays[0]
            x[...] = ranks.xp.asarray(sources[which][rank])
            ranks.windows[rank].launch(calls[rank])
            if which != 3:  # of a broadcast it is the result, too
                x[...] = x.dtype.type(0)
            assert ranks.get(found[rank][0]).tobytes() == found[rank][1], (which, rank)

        def all_turns(rank: int) -> None:
            for _, which in itertools.product(range(6), range(len(prepared))):
                turn(rank, which)

        assert ranks.run(all_turns) == [None] * 3
    ranks.close()


@pytest.mark.parametrize("order", [0, 2])
def test_epochs_wrap_around(order: int) -> None:
    """After 2^32 meetings; rounds, calls and numbers wrap, too."""
    ranks = Ranks(3, once=500)
    for arena in ranks.arenas:  # csrc/peer/device_layout.hpp: states of 128 blocks, then flags
        words = arena[2 * 128 : 130 * 128 + 128 * 16 * 4].view(np.uint32)
        words[...] = 2**32 - 5
    chance = random.Random(order)
    with fiber_order(order):
        for _ in range(20):
            check(ranks, mixed(ranks, chance))
    ranks.close()


def test_two_communicators_over_the_same_arenas() -> None:
    ranks = Ranks(3, windows=2, once=0)
    chance = random.Random(1)
    for turn in range(40):
        check(ranks, mixed(ranks, chance, turn % 2), turn % 2)
    ranks.close()


@pytest.mark.parametrize("size", [2, 3])
def test_stages_apart_give_the_same_bits(size: int) -> None:
    for once in (None, 0):
        ranks = Ranks(size, once=once, split=True, staging=1024)
        for n, gather, inside in itertools.product((0, 1, 130, 900), (True, False), (True, False)):
            check(ranks, reduction(ranks, n, gather, inside))
        ranks.close()


def test_what_lies_in_no_arena_is_counted() -> None:
    ranks = Ranks(2, once=64)
    check(ranks, reduction(ranks, 8, True, False))
    check(ranks, reduction(ranks, 100, True, True))
    assert ranks.windows[0].copied == 0
    check(ranks, reduction(ranks, 100, True, False))
    assert ranks.windows[0].copied == 800
    check(ranks, all_gather(ranks, [100, 50], False))
    assert [window.copied for window in ranks.windows] == [900, 850]
    ranks.close()
