"""How ranks meet in csrc/peer/device_flags.cuh, in every order (protocol_model.py): nothing is read
before it is written or after it is written over, nobody waits for ever; and each part is needed."""

from __future__ import annotations

import itertools

import pytest
from protocol_model import Explorer, Violation
from protocol_program import Call, Program, programs

ONCE, DIRECT = Call("once"), Call("all_reduce", direct=(True, True))
STAGED, SCATTER = (
    Call("all_reduce", rounds=3, direct=(False, False)),
    Call("reduce_scatter", direct=(True, True)),
)
GATHER = Call("all_gather", direct=(True, True))
PRODUCTS = [Call(f"product_{what}") for what in ("scatter", "all", "gather")]
PRODUCT, EVERYWHERE = PRODUCTS[:2]


def kinds(size: int) -> list[Call]:
    every, none, some = (True,) * size, (False,) * size, (True,) * (size - 1) + (False,)
    return [
        Call("once"),
        Call("once", rounds=3),
        Call("all_reduce", rounds=3, direct=none),
        Call("all_reduce", direct=every),
        Call("all_reduce", rounds=2, direct=some),
        Call("reduce_scatter", rounds=3, direct=none),
        Call("reduce_scatter", direct=every),
        Call("reduce_scatter", rounds=2, direct=some),
        Call("all_gather", rounds=2, direct=none),
        Call("all_gather", direct=every),
        Call("barrier"),
    ]


def check(threads: list[Program], **how: bool | int) -> set[tuple[str, ...]]:
    return Explorer(threads, **how).run()  # type: ignore[arg-type]


def test_every_kind_after_every_other() -> None:
    for pair in itertools.product(kinds(2), repeat=2):
        assert check(programs(2, [*pair, pair[0]])) == {("", "")}


@pytest.mark.parametrize("which", range(11))
def test_every_kind_between_two_others_of_three_ranks(which: int) -> None:
    row = kinds(3)
    assert check(programs(3, [row[which - 1], row[which]])) == {("",) * 3}


def test_all_kinds_in_a_row() -> None:
    row = kinds(2)
    assert check(programs(2, row + row[::-1])) == {("", "")}


def test_blocks_that_share_arrays_differently_from_call_to_call() -> None:
    """A block waits for its like only; that kernels before have ended everywhere does the rest."""
    for pair in itertools.product((ONCE, DIRECT, SCATTER, GATHER), repeat=2):
        assert check(programs(2, pair, blocks=2)) == {("", "")}


def test_products_after_every_kind_and_before() -> None:
    for call, other in itertools.product(PRODUCTS, [*kinds(2), *PRODUCTS]):
        assert check(programs(2, [call, other, call])) == {("", "")}
    for pair in itertools.product(PRODUCTS, repeat=2):
        assert check(programs(2, pair, blocks=2)) == {("", "")}
    for call in PRODUCTS:
        assert check(programs(3, [call])) == {("",) * 3}


# --- what each part is for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        ("no release", [ONCE]),
        ("no acquire", [ONCE]),
        ("no entry", [ONCE]),
        ("no entry", [DIRECT]),
        ("no rounds", [STAGED]),
        ("no exit", [SCATTER, SCATTER]),
        ("no exit", [GATHER, GATHER]),
        ("no exit", [DIRECT, DIRECT]),
        ("one buffer", [ONCE, ONCE]),
        ("one buffer", [STAGED]),
        ("one letter", [ONCE, ONCE]),
        ("letter behind the flag", [ONCE]),
        ("no release", [PRODUCT]),
        ("no acquire", [PRODUCT]),
        ("no tile flags", [PRODUCT]),
        ("one number", [PRODUCT, PRODUCT]),
        ("no entry", [PRODUCT, PRODUCT]),
        ("no exit", [EVERYWHERE]),
    ],
)
def test_without_it_something_is_read_that_is_not_there(fault: str, calls: list[Call]) -> None:
    assert check(programs(2, calls)) == {("", "")}
    with pytest.raises(Violation, match=r" races with | reads "):
        check(programs(2, calls, [fault]))


def test_kernels_of_a_stream_must_not_overlap() -> None:
    calls = [SCATTER, DIRECT]
    assert check(programs(2, calls, blocks=2)) == {("", "")}
    with pytest.raises(Violation, match="races"):
        check(programs(2, calls, ["no kernel boundaries"], blocks=2))


def test_a_rank_that_leaves_a_meeting_out_is_waited_for_for_ever() -> None:
    threads = programs(2, [ONCE, ONCE])
    short = programs(2, [ONCE])
    with pytest.raises(Violation, match="rank 1 waits for ever"):
        check([short[0], threads[1]])


# --- ranks that differ, die or are late -----------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_find_out_that_one_means_something_else(size: int) -> None:
    """Also where it would meet the others less or more often."""
    for usual, other in itertools.permutations(kinds(size)[:: 2 * size - 3], 2):
        for odd in (0, size - 1):
            calls = [[ONCE, other if rank == odd else usual, ONCE] for rank in range(size)]
            assert check(programs(size, calls)) == {("differs",) * size}


def test_a_grid_of_another_size_ends_too() -> None:
    """A block that has no like on the other rank ends when another block of its rank has failed."""
    calls = [[Call("once", blocks=1)], [Call("once", blocks=2)]]
    assert check(programs(2, calls, blocks=2)) == {("differs", "differs")}


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_that_dies_anywhere_holds_up_nobody(size: int) -> None:
    for call in [*kinds(size)[:: 3 * size - 5], *PRODUCTS[: 4 - size]]:
        ends = check(programs(size, [call, ONCE][: 4 - size]), dies=0, late=True)
        assert {end[0] for end in ends} >= {"died"}
        assert all(x in ("", "late", "aborted", "died") for end in ends for x in end)


def test_a_rank_that_comes_after_others_gave_up_reads_nothing_wrong() -> None:
    for pair in itertools.product(kinds(2), repeat=2):
        ends = check(programs(2, [*pair, ONCE]), late=True)
        assert ("", "") in ends
        assert any("late" in end for end in ends)


def test_who_gave_up_must_not_go_on() -> None:
    calls = [ONCE, ONCE, ONCE]
    check(programs(2, calls), late=True)
    with pytest.raises(Violation, match=r"races|reads"):
        check(programs(2, calls, ["goes on after a failure"]), late=True)
