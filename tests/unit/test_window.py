"""Windows of several ranks in one process: who may say what when, and what a wrong call leaves."""

from __future__ import annotations

import itertools
import re
import threading
import time
from typing import Any

import numpy as np
import pytest

from plait import _cpu
from plait.comm.tree import merges

MB = 1 << 20


def windows(ranks: int, staging: int = 4096) -> list[Any]:
    arenas = [_cpu.Arena(1 << 30) for _ in range(ranks)]
    found = []
    for rank, arena in enumerate(arenas):
        peers = [None if r == rank else _cpu.Mapping(a.fd, 1 << 30) for r, a in enumerate(arenas)]
        found.append(_cpu.Window(arena, peers, rank, staging))
    offsets = [window.offset for window in found]
    for window in found:
        window.connect(offsets)
    return found


def finish(some: list[Any], seconds: float = 10.0) -> None:
    left, deadline = list(some), time.monotonic() + seconds
    while left:
        assert time.monotonic() < deadline, f"{len(left)} ranks do not end"
        left = [window for window in left if not window.advance(0)]


def bytes_of(*values: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.full(count, value, np.uint8) for count, value in values])


def test_a_late_reader_of_all_to_all_is_not_misled_by_the_next_collectives() -> None:
    """Rank 0 stages for long and reads at once; rank 1 is then two collectives further. What it
    says there must not be taken for what it said about the first."""
    a, b = windows(2, staging=64 * MB)
    n = 32 * MB
    out_a, out_b = np.zeros(128, np.uint8), np.zeros(n + 64, np.uint8)
    x_a, x_b = bytes_of((64, 1), (n, 7)), bytes_of((64, 9), (64, 3))
    a.start(a.all_to_all(x_a, [0, 64, 64 + n], out_a, [0, 64, 128]))
    first = threading.Thread(target=a.advance, args=(0,))  # copies 32 MB, looks, returns
    first.start()
    b.start(b.all_to_all(x_b, [0, 64, 128], out_b, [0, n, n + 64]))
    b.advance(0)
    first.join()
    a_done = False
    while not b.advance(0):
        a_done = a_done or a.advance(0)
    sent, lengths = np.full(1000, 55, np.uint8), [64 * MB + 8, 8]
    b.start(b.broadcast(sent, 1))
    assert b.advance(0)
    gathered = [np.zeros(sum(lengths), np.uint8) for _ in range(2)]
    pieces = [np.full(lengths[0], 6, np.uint8), np.full(lengths[1], 4, np.uint8)]
    b.start(b.all_gather(pieces[1], lengths, gathered[1]))
    b.advance(0)
    a_done or finish([a])
    assert out_a.tobytes() == bytes_of((64, 1), (64, 9)).tobytes()
    assert out_b.tobytes() == bytes_of((n, 7), (64, 3)).tobytes()
    received = np.zeros(1000, np.uint8)
    a.start(a.broadcast(received, 1))
    finish([a])
    assert (received == 55).all()
    a.start(a.all_gather(pieces[0], lengths, gathered[0]))
    finish([a, b])
    for found in gathered:
        assert found.tobytes() == bytes_of((lengths[0], 6), (lengths[1], 4)).tobytes()


def spec(nodes: list[int], merges: list[int], bounds: list[int], gather: bool = True) -> Any:
    return _cpu.ReduceSpec(nodes, merges, bounds, 1, "sum", gather)


def test_refused_calls_leave_a_window_as_it_was() -> None:
    a, b = windows(2)
    x, out = np.arange(6, dtype=np.float32), np.empty(6, np.float32)
    good = spec([1, 1], [0, 1], [0, 3, 6])
    flat = np.zeros(12, np.uint8)
    for refused in (
        lambda: a.start(a.reduction(x, spec([1, 1], [0, 1], []), None, out)),
        lambda: a.start(a.reduction(x, spec([1, 1], [0], [0, 3, 6]), None, out)),
        lambda: a.start(a.reduction(x, spec([1, 1], [0, 1], [3, 0, 6]), None, out)),
        lambda: a.start(a.reduction(x, good, np.arange(12, dtype=np.float32)[::2], out)),
        lambda: a.start(a.reduction(x, good, np.zeros(6, np.int8), out)),
        lambda: a.start(a.reduction(x, good, np.zeros(4, np.float32), out)),
        lambda: a.start(a.reduction(x, good, np.zeros(0, np.float32), out)),
        lambda: a.start(a.all_gather(flat[:4], [4, 4], np.zeros(9, np.uint8))),
        lambda: a.start(a.all_gather(flat[:8:2], [4, 4], np.zeros(8, np.uint8))),
        lambda: a.start(a.all_to_all(flat[:2], [0, 1, 2], flat, [0, 11, 12])),
        lambda: a.start(a.all_to_all(flat, [0, 13, 12], flat.copy(), [0, 13, 12])),
        lambda: a.start(a.broadcast(flat[::2], 0)),
        lambda: a.start(a.broadcast(flat, 2)),
    ):
        with pytest.raises(ValueError, match="window: "):
            refused()
    y, total = 10 * x, np.empty(6, np.float32)
    bias = np.ones(3, np.float32)
    a.start(a.reduction(x, good, bias, out))
    b.start(b.reduction(y, good, bias, total))
    finish([a, b])
    assert out.tolist() == total.tolist() == (11 * x + 1).tolist()


def test_a_trimmed_arena_keeps_what_lives_and_gives_back_the_rest() -> None:
    arena = _cpu.Arena(1 << 30)
    low, live, high = (arena.empty(size) for size in (5_000_001, 3_000, 9_000_000))
    live.fill(2)
    present, calls = (_cpu.memory_use()[key] for key in ("shared", "system_calls"))
    del low
    _cpu.trim_memory()
    assert _cpu.memory_use()["shared"] <= present - 4_900_000
    del high  # after a trim what is freed goes at once
    assert _cpu.memory_use()["shared"] <= present - 13_800_000
    assert (live == 2).all()
    again = [arena.empty(size) for size in (2_000_000, 2_000_000, 9_000_000)]
    assert _cpu.memory_use()["shared"] >= present - 4_000_000
    assert _cpu.memory_use()["system_calls"] > calls
    for x in again:
        x.fill(7)
    assert (live == 2).all()
    calls = _cpu.memory_use()["system_calls"]
    del again, x
    kept = [arena.empty(size) for size in (2_000_000, 9_000_000)]
    assert _cpu.memory_use()["system_calls"] <= calls + 1
    assert len(kept) == 2


def test_an_array_that_no_arena_can_hold_is_refused() -> None:
    arena = _cpu.Arena(1 << 20)
    for size in (1 << 20, 2**63 - 1, -1):
        with pytest.raises(ValueError, match="arena: cannot hold"):
            arena.empty(size)
    assert len(arena.empty(1000)) == 1000


@pytest.mark.parametrize(
    ("mine", "theirs", "message"),
    [
        ("sum 6", "barrier", r"an all_reduce \(sum of float32\) of 24 bytes, rank 1 in a barrier"),
        ("sum 6", "sum 4", "of 24 bytes, rank 1 in an all_reduce .* of 16 bytes"),
        ("sum 6", "max 6", r"\(sum of float32\) .* \(max of int32\)"),
        ("gather", "sum 6", r"an all_gather \(uint8\) of 8 bytes, rank 1 in an all_reduce"),
        ("gather", "all_to_all", r"an all_gather .* of 8 bytes, rank 1 in an all_to_all \(uint8\)"),
        (
            "receive",
            "barrier",
            r"a broadcast \(uint8\) from rank 1 of 8 bytes, rank 1 in a barrier",
        ),
    ],
)
def test_different_collectives_are_named(mine: str, theirs: str, message: str) -> None:
    arrays: list[Any] = []

    def start(window: Any, call: str) -> None:
        flat, out = np.zeros(8, np.uint8), np.zeros(8, np.uint8)
        arrays.append((flat, out))
        if call == "barrier":
            window.start(window.barrier())
        elif call == "receive":
            window.start(window.broadcast(flat, 1))
        elif call == "gather":
            window.start(window.all_gather(flat[:4], [4, 4], out))
        elif call == "all_to_all":
            window.start(window.all_to_all(flat, [0, 4, 8], out, [0, 4, 8]))
        else:
            op, size = call.split()
            n, dtype = int(size), np.float32 if op == "sum" else np.int32
            x = np.zeros(n, dtype)
            arrays.append((x, y := np.zeros(n, dtype)))
            spec = _cpu.ReduceSpec([1, 1], [0, 1], [0, n // 2, n], 1, op, True)
            window.start(window.reduction(x, spec, None, y))

    a, b = windows(2)
    start(a, mine)
    start(b, theirs)
    errors = failing(a, b)
    assert re.search(message, str(errors[0])), errors
    same = "sum" in mine and theirs.split()[0] in ("sum", "max")
    assert all(isinstance(error, ValueError if same else RuntimeError) for error in errors)
    if mine != "receive":
        go_on(a, b)


def failing(*some: Any) -> list[Exception]:
    """What each of them raises."""
    errors: dict[Any, Exception] = {}
    deadline = time.monotonic() + 10
    while len(errors) < len(some):
        assert time.monotonic() < deadline, f"only {errors}"
        for window in some:
            try:
                assert window in errors or not window.advance(0)
            except (RuntimeError, ValueError) as error:
                errors[window] = error
    return [errors[window] for window in some]


def go_on(*some: Any) -> None:
    """Collectives of one and of many rounds, in letters and in cells."""
    for n in (6, 5000):
        outs, x = [np.empty(n, np.float32) for _ in some], np.ones(n, np.float32)
        count = len(some)
        order = merges(count, [(rank, rank + 1) for rank in range(count)])
        good = spec([1] * count, order, [n * rank // count for rank in range(count + 1)])
        for window, out in zip(some, outs, strict=True):
            window.start(window.reduction(x, good, None, out))
        finish(list(some))
        assert all((out == len(some)).all() for out in outs)


@pytest.mark.parametrize("n", [4, 40_000])
@pytest.mark.parametrize("call", ["reduce", "all_gather", "all_to_all", "broadcast", "barrier"])
def test_a_rank_that_refuses_its_arguments_holds_up_nobody(call: str, n: int) -> None:
    a, b = windows(2)
    x, y = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
    one = np.zeros(n // 4, np.float32)
    prepared = {
        "reduce": lambda: a.reduction(one, spec([1, 1], [0, 1], [0, 1, n // 4]), None, one.copy()),
        "all_gather": lambda: a.all_gather(x[: n // 2], [n // 2, n // 2], y),
        "all_to_all": lambda: a.all_to_all(x, [0, n // 2, n], y, [0, n // 2, n]),
        "broadcast": lambda: a.broadcast(x, 0),
        "barrier": lambda: a.barrier(),
    }[call]()
    a.start(prepared)
    b.start(b.refused())
    if call == "broadcast" and n < 100:  # its root has said all it has to say
        finish([a, b])
    else:
        (error,) = failing_beside(a, b)
        assert isinstance(error, ValueError)
        assert "rank 1 in a call it refuses" in str(error)
    go_on(a, b)
    for window in (a, b):
        window.start(window.refused())
    finish([a, b])
    go_on(a, b)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("n", [24, 24_000])
def test_an_all_to_all_of_unequal_counts_fails_on_every_rank(ranks: int, n: int) -> None:
    """Whoever it is that sends or expects another number, in whichever order they come."""
    some = windows(ranks)
    even = [n * rank // ranks for rank in range(ranks + 1)]
    other = [*even[:-1], n - 1]
    flat = [np.zeros(n, np.uint8) for _ in some]
    for odd, of in itertools.product(range(ranks - 1), ("sends", "receives")):
        for rank, window in enumerate(some):
            sends = other if (rank, of) == (odd, "sends") else even
            receives = other if (rank, of) == (odd, "receives") else even
            x, out = flat[rank][: sends[-1]], np.zeros(receives[-1], np.uint8)
            window.start(window.all_to_all(x, sends, out, receives))
        errors = failing(*some)
        assert all("all_to_all in which not all ranks receive as" in str(e) for e in errors)
        found = [rank for rank, error in enumerate(errors) if ": rank " in str(error)]
        assert found == [ranks - 1 if of == "sends" else odd]
        go_on(*some)


def test_a_broadcast_whose_root_hears_nobody_among_others_leaves_all_in_step() -> None:
    """The root of a broadcast in letters goes on, while others disagree with it or each other: what
    they have staged by then is nothing that the next collective may take."""
    n = 5000
    for order in itertools.permutations(range(3)):
        some = windows(3)
        flat = [np.zeros(3 * n, np.uint8) for _ in some]
        one = [np.zeros(n, np.float32) for _ in some]
        whole = _cpu.ReduceSpec([1] * 3, [0, 1, 1], [0, 1, 2, n], 1, "sum", True)
        root, staging, other = (some[rank] for rank in order)
        staging.start(staging.reduction(one[0], whole, None, one[1]))
        assert not staging.advance(0)
        root.start(root.broadcast(flat[0][:8], order[0]))
        other.start(other.broadcast(flat[1][:8], order[0]))
        assert root.advance(0)
        assert other.advance(0)
        failing(staging)
        outs = [np.zeros(3 * n, np.uint8) for _ in some]
        lengths = [n] * 3
        ended = set()
        for rank in (order[0], order[2], order[1]):  # who had staged comes last
            x = np.full(n, rank + 1, np.uint8)
            flat[rank] = x
            some[rank].start(some[rank].all_gather(x, lengths, outs[rank]))
            if some[rank].advance(0):
                ended.add(some[rank])
        finish([window for window in some if window not in ended])
        for out in outs:
            assert out.tobytes() == bytes_of((n, 1), (n, 2), (n, 3)).tobytes()


@pytest.mark.parametrize("sizes", [(8, 5000, 8), (5000, 8, 5000), (5000, 5000, 8), (5000, 6000, 8)])
def test_broadcasts_of_different_sizes_leave_all_in_step(sizes: tuple[int, ...]) -> None:
    some = windows(3)
    flat = [np.zeros(size, np.uint8) for size in sizes]
    for window, x in zip(some, flat, strict=True):
        window.start(window.broadcast(x, 2))
    left, deadline = set(some), time.monotonic() + 10
    while left:
        assert time.monotonic() < deadline
        for window in tuple(left):
            try:
                if window.advance(0):
                    left.remove(window)
            except ValueError:
                left.remove(window)
    outs, x = [np.zeros(9000, np.float32) for _ in some], np.ones(9000, np.float32)
    whole = _cpu.ReduceSpec([1] * 3, [0, 1, 1], [0, 10, 5000, 9000], 1, "sum", True)
    for window, out in zip(some, outs, strict=True):
        window.start(window.reduction(x, whole, None, out))
    finish(some)
    assert all((out == 3).all() for out in outs)


def test_ranks_that_cut_differently_are_told() -> None:
    """Of the same bytes in all, one has so little in each piece that it goes in letters."""
    a, b = windows(2)
    x, y, out, total = (np.zeros(900, np.uint8) for _ in range(4))
    nodes, sums = [np.zeros(200, np.float32) for _ in range(2)], np.zeros((2, 200), np.float32)
    pairs = [
        (
            a.all_gather(x[:450], [450, 450], out),
            b.all_gather(y, [0, 900], total),
        ),
        (
            a.reduction(nodes[0], spec([1, 1], [0, 1], [0, 100, 200], False), None, sums[0, :100]),
            b.reduction(nodes[1], spec([1, 1], [0, 1], [0, 0, 200], False), None, sums[1]),
        ),
        (
            a.reduction(nodes[0], spec([1, 1], [0, 1], [0, 9, 200]), np.ones(2, "f4"), sums[0]),
            b.reduction(nodes[1], spec([1, 1], [0, 1], [0, 9, 200]), None, sums[1]),
        ),
    ]
    for first, second in pairs:
        a.start(first)
        b.start(second)
        for error in failing(a, b):
            assert isinstance(error, ValueError)
            assert "the same leaves, axis, bounds" in str(error)
        go_on(a, b)


def failing_beside(window: Any, other: Any) -> list[Exception]:
    """What window raises; the other comes to its end."""
    other.advance(0)
    errors = failing(window)
    finish([other])
    return errors
