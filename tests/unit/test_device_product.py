"""Products whose rows belong to several ranks, multiplied and communicated by one kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from device_ranks import BFLOAT16, Ranks, leaves_of, tree_of
from test_device_window import fiber_order

pytestmark = pytest.mark.cuda

RNG = np.random.default_rng(7)
FLOAT32 = np.dtype(np.float32)
# rows, columns, k of each rank, leaves of its sum, whether rows are cut evenly; the last has
# tiles in pairs, and whole ones
SHAPES = [
    (300, 136, 96, 1, False),
    (70, 264, 64, 2, False),
    (513, 8, 32, 1, False),
    (768, 72, 16, 1, True),
]
Shape = tuple[int, int, int, int, bool]


def randoms(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(BFLOAT16)


def cut(rows: int, size: int, evenly: bool) -> list[int]:
    """Else one segment has no row, where there are several to have them."""
    if evenly:
        return [rows * rank // size for rank in range(size + 1)]
    bounds = [0, *sorted(RNG.integers(0, rows + 1, size - 1).tolist()), rows]
    if size > 2:
        bounds[2] = bounds[1]
    return bounds


@contextmanager
def ranks_on(size: int, engine: str, **how: Any) -> Iterator[Ranks]:
    """engine: fibers have a device of either compute capability; a GPU is what it is."""
    ranks = Ranks(size, arena=6 << 20, **how)
    choose = getattr(ranks.module, "set_device", None) if ranks.xp is np else None
    if choose is not None:
        device = 1 if engine == "wgmma" else 0
        choose(device)  # where calls are made
        ranks.run(lambda rank: choose(device))
    try:
        yield ranks
    finally:
        if choose is not None:
            choose(0)
        ranks.close()


def chosen(ranks: Ranks, engine: str) -> bool:
    """Whether it is wgmma: a GPU has one of the two."""
    return engine == "wgmma" if ranks.xp is np else bool(ranks.module.wgmma_available())


def multiply(
    ranks: Ranks, x: np.ndarray, w: np.ndarray, leaves: list[int], dtype: Any
) -> np.ndarray:
    """By the op, on rank 0."""
    out = ranks.xp.zeros((len(x), w.shape[1]), dtype)
    given = [ranks.xp.asarray(a) for a in (x, w)]
    for found in ranks.run(
        lambda rank: ranks.module.matmul(*given, False, False, leaves, False, 0, None, out), [0]
    ):
        assert found is None, found
    return ranks.get(out)


def launch(ranks: Ranks, calls: list[list[Any]]) -> None:
    for turn in zip(*calls, strict=True):
        ranks.collect(turn)


def leaves_in(k: int, leaves: int) -> list[int]:
    return [k * leaf // leaves for leaf in range(leaves + 1)]


def reduce(
    ranks: Ranks, engine: str, shape: Shape, dtype: Any, gather: bool
) -> tuple[list[list[Any]], list[tuple[Any, np.ndarray]]]:
    """The calls of all ranks, and what their arrays must be then."""
    m, n, k, leaves, evenly = shape
    size, (_, merges) = ranks.size, leaves_of(ranks.size)
    bounds = cut(m, size, evenly)
    xs, ws = ([randoms(*s) for _ in range(size)] for s in ((m, k), (k, n)))
    parts = [
        multiply(ranks, x, w, leaves_in(k, leaves), FLOAT32) for x, w in zip(xs, ws, strict=True)
    ]
    whole = tree_of(parts, merges, None, dtype)
    places = [
        ranks.empty(rank, (size, bounds[rank + 1] - bounds[rank], n), FLOAT32)
        for rank in range(size)
    ]
    outs = [
        ranks.empty(rank, (m, n), dtype)
        if gather
        else ranks.empty(rank, (bounds[rank + 1] - bounds[rank], n), dtype, inside=False)
        for rank in range(size)
    ]
    spec = ranks.module.ProductSpec(
        bounds, leaves_in(k, leaves), merges, [ranks.offset(r, p) for r, p in enumerate(places)],
        [ranks.offset(r, o) for r, o in enumerate(outs)] if gather else [], chosen(ranks, engine),
    )  # fmt: skip

    def call(r: int) -> Any:
        given = (ranks.put(r, each[r], inside=False) for each in (xs, ws))
        return ranks.windows[r].matmul_reduce(*given, spec, gather, outs[r])

    calls = of_each(ranks, call)
    wanted = [whole if gather else whole[bounds[r] : bounds[r + 1]] for r in range(size)]
    return calls, list(zip(outs, wanted, strict=True))


def gather(
    ranks: Ranks, engine: str, shape: Shape, dtype: Any
) -> tuple[list[list[Any]], list[tuple[Any, np.ndarray]]]:
    m, n, k, _, evenly = shape
    size = ranks.size
    bounds = [0, *sorted((RNG.choice(m - 1, size - 1, replace=False) + 1).tolist()), m]
    if evenly:
        bounds = cut(m, size, evenly)
    # every rank its own columns, some more than others
    x, ws = randoms(m, k), [randoms(k, n + 8 * rank) for rank in range(size)]
    places = [ranks.empty(rank, (m, k), BFLOAT16) for rank in range(size)]
    spec = ranks.module.ProductSpec(
        bounds, [0, k], leaves_of(size)[1], [ranks.offset(r, p) for r, p in enumerate(places)], [],
        chosen(ranks, engine),
    )  # fmt: skip
    outs = [
        ranks.empty(r, (m, n + 8 * r), dtype if r else FLOAT32, inside=False) for r in range(size)
    ]

    def call(r: int) -> Any:
        own = ranks.put(r, np.ascontiguousarray(x[bounds[r] : bounds[r + 1]]), inside=False)
        w = ranks.put(r, ws[r], inside=False)
        return ranks.windows[r].all_gather_matmul(own, w, spec, outs[r])

    wanted = [multiply(ranks, x, w, [0, k], out.dtype) for w, out in zip(ws, outs, strict=True)]
    return of_each(ranks, call), list(zip(outs, wanted, strict=True))


def of_each(ranks: Ranks, call: Callable[[int], Any]) -> list[Any]:
    """call(rank) by each rank's thread, whose stream gets the working memory: none is taken while
    a peer's kernel waits."""
    calls = ranks.run(call)
    for each in calls:
        if isinstance(each, Exception):
            raise each
    return calls


def check(ranks: Ranks, found: list[tuple[Any, np.ndarray]], what: Any) -> None:
    for rank, (out, wanted) in enumerate(found):
        got = ranks.get(out)
        assert got.tobytes() == wanted.tobytes(), (what, rank, (got != wanted).sum())


def calls_of(ranks: Ranks, kind: str, engine: str, shape: Shape, dtype: Any) -> Any:
    if kind == "all_gather":
        return gather(ranks, engine, shape, dtype)
    return reduce(ranks, engine, shape, dtype, kind == "all_reduce")


KINDS = ["reduce_scatter", "all_reduce", "all_gather"]
ENGINES = ["mma", "wgmma"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "split"), [(2, False), (3, False), (2, True)])
def test_products_have_the_bits_of_the_ops_apart(engine: str, kind: str, size: int, split: bool):
    with ranks_on(size, engine, split=split) as ranks:
        for shape, dtype in zip(SHAPES, (BFLOAT16, FLOAT32, BFLOAT16, BFLOAT16), strict=True):
            calls, found = calls_of(ranks, kind, engine, shape, dtype)
            launch(ranks, calls)
            check(ranks, found, (shape, dtype))


@pytest.mark.parametrize("size", [5, 8])
def test_sums_are_set_aside_as_the_tree_wants(size: int):
    with ranks_on(size, "wgmma") as ranks:
        calls, found = calls_of(ranks, "reduce_scatter", "wgmma", SHAPES[1], FLOAT32)
        launch(ranks, calls)
        check(ranks, found, size)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_after_the_other_in_any_order(engine: str, order: int):
    """Calls laid out once, and again and again with what was left there by the one before."""
    with ranks_on(2, engine) as ranks, fiber_order(order):
        made = [calls_of(ranks, kind, engine, SHAPES[1], BFLOAT16) for kind in KINDS]
        for turn in (0, 1, 2, 1, 1, 0, 0, 2, 2, 1):
            calls, found = made[turn]
            for out, _ in found:
                out[...] = 0
            launch(ranks, calls)
            check(ranks, found, KINDS[turn])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_that_never_comes_is_named(engine: str, kind: str):
    with ranks_on(2, engine) as ranks:
        for window in ranks.windows:
            window.set_deadline(0.05)
        calls, _ = calls_of(ranks, kind, engine, SHAPES[1], BFLOAT16)
        entry = next(zip(*calls, strict=True))
        ranks.collect(entry)
        # it came, and then no further
        for found in ranks.run(lambda rank: ranks.windows[rank].launch(calls[rank][1], 0), [0]):
            assert found is None
        name = "all_gather_matmul" if kind == "all_gather" else f"matmul_{kind}"
        with pytest.raises(
            RuntimeError, match=f"rank 0 gave up waiting for rank 1 in an? {name}.*collective 0"
        ):
            ranks.windows[0].check()
        ranks.run(lambda rank: ranks.windows[rank].launch(calls[rank][0], 0), [1])
        with pytest.raises(RuntimeError, match="rank 0 gave up a collective"):
            ranks.windows[1].check()


def test_products_that_differ_are_told():
    with ranks_on(2, "mma") as ranks:
        one, _ = calls_of(ranks, "reduce_scatter", "mma", SHAPES[0], BFLOAT16)
        other, _ = calls_of(ranks, "reduce_scatter", "mma", SHAPES[1], BFLOAT16)
        name = "in a matmul_reduce_scatter of"
        with pytest.raises(ValueError, match=rf"rank . is {name} \d+ bytes, rank . {name} \d+"):
            ranks.collect([one[0][0], other[1][0]])


def test_what_a_product_refuses():
    with ranks_on(2, "mma") as ranks:
        fits, put = ranks.module.product_fits, lambda x: ranks.put(0, x, inside=False)
        x, w = put(randoms(40, 64)), put(randoms(64, 24))
        assert fits(x, w, [0, 64], [0, 20, 40], True)
        assert fits(x, w, [0, 32, 64], [0, 20, 40], True)
        assert not fits(x, w, [0, 24, 64], [0, 20, 40], True)  # a leaf that begins within a step
        assert not fits(x, w, [0, 48], [0, 20, 40], True)
        assert not fits(x[:, :32], w[:32], [0, 32], [0, 20, 40], True)  # rows apart
        assert not fits(put(randoms(40, 60)), put(randoms(60, 24)), [0, 60], [0, 20, 40], True)
        assert not fits(x, put(randoms(64, 23)), [0, 64], [0, 20, 40], True)
        assert not fits(
            put(np.zeros((40, 64), FLOAT32)),
            put(np.zeros((64, 24), FLOAT32)),
            [0, 64],
            [0, 40],
            True,
        )
        assert not fits(x, w, [0, 64], [0, 128 * 10000, 128 * 10000], True)  # more tiles than flags


def test_a_product_after_a_meeting_that_failed_touches_nothing():
    with ranks_on(2, "mma") as ranks:
        calls, found = calls_of(ranks, "reduce_scatter", "mma", SHAPES[1], BFLOAT16)
        launch(ranks, calls)
        check(ranks, found, "before")
        for out, _ in found:
            out[...] = 0
        ranks.windows[0].set_deadline(0.05)
        for call in calls[0]:
            ranks.run(lambda rank, call=call: ranks.windows[0].launch(call, 0), [0])
        with pytest.raises(RuntimeError, match="rank 0 gave up waiting for rank 1"):
            ranks.windows[0].check()
        assert not ranks.get(found[0][0]).any()
