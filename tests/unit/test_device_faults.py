"""Windows of a device: what goes wrong, and what is said of it."""

from __future__ import annotations

import functools
import itertools
import re
from typing import Any

import numpy as np
import pytest
from device_calls import fiber_order, reduction
from device_ranks import Ranks, even, leaves_of

pytestmark = pytest.mark.cuda

RNG = np.random.default_rng(5)


def errors(ranks: Ranks, calls: list[Any]) -> list[str]:
    """What check() says on every rank whose call is not None."""

    def work(rank: int) -> str:
        window = ranks.windows[rank]
        window.launch(calls[rank])
        ranks.streams[rank].synchronize()
        try:
            window.check()
        except (RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return "none"

    return [
        str(x)
        for x in ranks.run(work, [rank for rank, call in enumerate(calls) if call is not None])
    ]


def launch(ranks: Ranks, calls: list[Any], stage: int, rank: int) -> None:
    ranks.windows[rank].launch(calls[rank], stage)


def a_call(ranks: Ranks, rank: int, what: str) -> Any:
    window = ranks.windows[rank]
    name, _, n = what.partition(" ")
    count = int(n or 0)
    flat, out = ranks.empty(rank, (count,), np.uint8), ranks.empty(rank, (count,), np.uint8)
    if name in ("sum", "max", "scatter"):
        dtype = np.int32 if name == "max" else np.float32
        counts, merges = leaves_of(ranks.size)
        op = "max" if name == "max" else "sum"
        spec = ranks.module.ReduceSpec(
            counts, merges, even(count, ranks.size), 1, op, name != "scatter"
        )
        length = count // ranks.size if name == "scatter" else count
        return window.reduction(
            ranks.put(rank, np.zeros(count, dtype)), spec, None, ranks.empty(rank, (length,), dtype)
        )
    if name == "gather":
        return window.all_gather(flat[: count // 2], [count // 2] * 2, out)
    if name == "exchange":
        return window.all_to_all(flat, [0, count // 2, count], out, [0, count // 2, count])
    if name == "uneven":  # a byte too few for the other rank
        sends = [0, count // 2 - rank, count - 1]
        return window.all_to_all(flat[:-1], sends, out, [0, count // 2, count])
    if name == "root":
        return window.broadcast(flat, rank)
    return {"barrier": window.barrier, "refused": window.refused}[name]()


@pytest.mark.parametrize(
    ("mine", "theirs", "message"),
    [
        (
            "sum 6",
            "sum 4",
            r"same op, type and size: rank 0 is in an all_reduce .sum of float32. of 24 bytes, "
            r"rank 1 in an all_reduce .* of 16 bytes",
        ),
        ("sum 8", "max 8", r"\(sum of float32\) of 32 bytes, rank 1 in .* \(max of int32\)"),
        ("sum 6", "barrier", "same order: rank 0 is in an all_reduce .* rank 1 in a barrier"),
        ("sum 2000", "sum 6", "rank 0 is in an all_reduce .* of 8000 bytes, rank 1 in .* 24 bytes"),
        (
            "scatter 2000",
            "gather 10",
            "rank 0 is in a reduce_scatter .* rank 1 in an all_gather .uint8. of 10 bytes",
        ),
        (
            "root 10",
            "root 10",
            "a broadcast .uint8. from rank 0 of 10 bytes, rank 1 in a broadcast .* from rank 1",
        ),
        ("exchange 10", "gather 10", "rank 0 is in an all_to_all .uint8., rank 1 in an all_gather"),
        ("exchange 10", "uneven 10", "not all ranks receive as much"),
        ("gather 4000", "refused", "rank 0 is in an all_gather .* rank 1 in a call it refuses"),
    ],
)
def test_calls_that_differ_are_named_on_both_ranks(mine: str, theirs: str, message: str) -> None:
    for turn, split in itertools.product((False, True), (False, True)):
        ranks = Ranks(2, once=1000, split=split, blocks=4)
        calls = [a_call(ranks, rank, theirs if (rank == 1) != turn else mine) for rank in range(2)]
        if split:
            for stage in range(2):
                ranks.run(functools.partial(launch, ranks, calls, stage))
            found = []
            for window in ranks.windows:
                with pytest.raises((ValueError, RuntimeError)) as caught:
                    window.check()
                found.append(str(caught.value))
        else:
            found = errors(ranks, calls)
        assert turn or re.search(message, found[0]), found
        for rank, text in enumerate(found):
            assert re.search(
                rf"rank {rank} is in .*, rank {1 - rank} in |an all_to_all in which", text
            ), found
        ranks.windows[0].launch(ranks.windows[0].barrier())  # every later one ends at once
        with pytest.raises((ValueError, RuntimeError)):
            ranks.windows[0].check()
        ranks.close()


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_rank_that_never_comes_is_named_and_the_others_end(missing: int) -> None:
    for order, what in itertools.product((0, 3), ("sum 100", "sum 5000", "scatter 6")):
        ranks = Ranks(3, once=1000)
        reduction(ranks, 10, True, True).check(ranks)
        for window in ranks.windows:
            window.set_deadline(0.02)
        calls = [None if rank == missing else a_call(ranks, rank, what) for rank in range(3)]
        with fiber_order(order):
            found = errors(ranks, calls)
        assert any(f"gave up waiting for rank {missing} in " in text for text in found), found
        assert any("collective 1 of this communicator, at its meeting 1" in text for text in found)
        for text in found:
            assert (
                f"gave up waiting for rank {missing}" in text
                or f"it waited for rank {missing}" in text
            ), found
        (late,) = errors(
            ranks, [a_call(ranks, rank, what) if rank == missing else None for rank in range(3)]
        )
        assert re.search(rf"rank \d gave up a collective .*: it waited for rank {missing}", late)
        assert {window.late_peer for window in ranks.windows} == {missing}
        ranks.close()


def test_abort_ends_those_that_wait_and_names_who_gave_up() -> None:
    ranks = Ranks(2)
    window = ranks.windows[0]
    call = window.barrier()

    def launch() -> None:
        with ranks.on(0, ranks.streams[0]):
            window.launch(call)

    waiting = ranks.threads[0].submit(launch)
    ranks.windows[1].abort()
    waiting.result(30)
    ranks.streams[0].synchronize()
    for each in ranks.windows:
        if each is ranks.windows[1]:
            ranks.run(lambda rank: ranks.windows[rank].launch(ranks.windows[rank].barrier()), [1])
        with pytest.raises(
            RuntimeError, match="rank 1 gave up a collective of this communicator; rank"
        ):
            each.check()
    ranks.close()


def test_moves_that_do_not_fit_are_refused() -> None:
    ranks = Ranks(2)
    window = ranks.windows[0]
    flat = ranks.empty(0, (12,), np.uint8)
    other = ranks.empty(0, (12,), np.uint8)
    for refused in (
        lambda: window.all_gather(flat[:4], [4, 4], other[:9]),
        lambda: window.all_gather(flat[4:8], [4, 4], flat[:8]),
        lambda: window.all_gather(flat[:8:2], [4, 4], other[:8]),
        lambda: window.all_to_all(flat[:2], [0, 1, 2], other, [0, 11, 12]),
        lambda: window.all_to_all(flat, [0, 13, 12], other, [0, 13, 12]),
        lambda: window.all_to_all(flat, [0, 6, 12], flat, [0, 6, 12]),
        lambda: window.broadcast(flat[::2], 0),
        lambda: window.broadcast(flat, 2),
        lambda: window.launch(window.barrier(), 1),
        lambda: window.set_deadline(0.0),
    ):
        with pytest.raises(ValueError, match="device window: "):
            refused()
    make = ranks.module.DeviceWindow
    for size, blocks in ((17, 1), (0, 1), (1, 0), (1, 1000)):
        with pytest.raises(ValueError, match="device window: "):
            make(0, size, [0] * size, [0] * size, [0] * size, 4096, blocks)
    ranks.close()
