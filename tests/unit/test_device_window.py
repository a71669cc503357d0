"""Windows of a device: what moves, and what comes one after another."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from device_calls import (
    RNG,
    all_gather,
    all_to_all,
    broadcast,
    fiber_order,
    mixed,
    queue_mixed,
    reduction,
)
from device_ranks import Ranks

pytestmark = pytest.mark.cuda

# --- moves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_moves_bring_every_byte_where_it_belongs(size: int) -> None:
    for once, split in ((None, False), (0, False), (None, True)):
        ranks = Ranks(size, once=once, split=split)
        for n, inside in itertools.product((0, 1, 37, 1024, 5003), (True, False)):
            for each in (
                all_gather(ranks, [n] * size, inside),
                all_gather(ranks, [(n * (rank + 1)) // size for rank in range(size)], inside),
                all_gather(ranks, [n] * size, inside, in_place=True),
                broadcast(ranks, n, size - 1, inside),
                all_to_all(ranks, np.full((size, size), n // size), inside),
                all_to_all(ranks, RNG.integers(0, n // size + 1, (size, size)), inside),
            ):
                each.check(ranks)
            ranks.used = [ranks.used[0] - ranks.used[0] % 16 + n % 2] * size  # odd addresses, too
        ranks.collect([window.barrier() for window in ranks.windows])
        ranks.close()


# --- one after another ----------------------------------------------------------------------------


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
    with fiber_order(order):
        queue_mixed(ranks, chance, 60 if size == 8 else 120)
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
            for _, each in itertools.product(range(50), prepared):
                ranks.windows[rank].launch(each.calls[rank])

        assert ranks.run(work) == [None] * 3
    for each in prepared:
        each.check(ranks)
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
    given, wanted = zip(*(each.fill(ranks) for each in prepared), strict=True)
    with fiber_order(order):

        def turn(rank: int, which: int) -> None:
            each = prepared[which]
            each.put(rank, given[which])
            ranks.windows[rank].launch(each.calls[rank])
            if which != 3:  # of a broadcast it is the result, too
                for x in each.sources[rank]:
                    x[...] = x.dtype.type(0)
            assert each.holds(ranks, rank, wanted[which]), (which, rank)

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
            mixed(ranks, chance).check(ranks)
    ranks.close()


def test_two_communicators_over_the_same_arenas() -> None:
    ranks = Ranks(3, windows=2, once=0)
    chance = random.Random(1)
    for turn in range(40):
        mixed(ranks, chance, turn % 2).check(ranks, turn % 2)
    ranks.close()


@pytest.mark.parametrize("size", [2, 3])
def test_stages_apart_give_the_same_bits(size: int) -> None:
    for once in (None, 0):
        ranks = Ranks(size, once=once, split=True, staging=1024)
        for n, gather, inside in itertools.product((0, 1, 130, 900), (True, False), (True, False)):
            reduction(ranks, n, gather, inside).check(ranks)
        ranks.close()


def test_what_lies_in_no_arena_is_counted() -> None:
    ranks = Ranks(2, once=64)
    reduction(ranks, 8, True, False).check(ranks)
    reduction(ranks, 100, True, True).check(ranks)
    assert ranks.windows[0].copied == 0
    reduction(ranks, 100, True, False).check(ranks)
    assert ranks.windows[0].copied == 800
    all_gather(ranks, [100, 50], False).check(ranks)
    assert [window.copied for window in ranks.windows] == [900, 850]
    ranks.close()
