"""all_reduce and reduce_scatter of a device's windows: the bits of the CPU's tree on every rank."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from device_ranks import BFLOAT16, Ranks, even, leaves_of, tree_of
from kernel_backends import kernels

pytestmark = pytest.mark.cuda

RNG = np.random.default_rng(3)
FLOATS = [
    (np.float32, np.float32),
    (BFLOAT16, BFLOAT16),
    (BFLOAT16, np.float32),
    (np.float32, BFLOAT16),
]
SIZES = [0, 1, 7, 130, 1001]  # at 1001 many rounds of the staging of these tests


def nodes_of(counts: list[int], n: int, dtype: Any, outer: int = 1) -> list[np.ndarray]:
    """(k, outer, n) of each rank."""
    if np.dtype(dtype).kind == "i":
        info = np.iinfo(dtype)
        return [RNG.integers(info.min, info.max, (k, outer, n), dtype) for k in counts]
    return [(1e3 ** RNG.uniform(-1, 1, (k, outer, n))).astype(dtype) for k in counts]


def expected(op: str, arrays: list[np.ndarray], merges: list[int], bias: Any, dtype: Any) -> Any:
    parts = [x for array in arrays for x in array]
    if np.dtype(dtype).kind != "i":
        return tree_of(parts, merges, bias, dtype)
    with np.errstate(over="ignore"):
        combine = {"sum": np.add, "max": np.maximum, "min": np.minimum}[op]
        return functools.reduce(combine, parts)


def check_reduction(
    ranks: Ranks, n: int, dtype: Any, out_dtype: Any, *, op: str = "sum", leaves: int | None = None,
    gather: bool = True, outer: int = 1, bias: int | None = None, unit: int = 1, number: int = 0,
    inside: tuple[bool, bool] = (True, True), in_place: bool = False, repeat: int = 1,
) -> None:  # fmt: skip
    counts, merges = leaves_of(ranks.size, leaves)
    bounds = even(n, ranks.size, unit)
    arrays = nodes_of(counts, n, dtype, outer)
    added = None if bias is None else RNG.standard_normal(bias).astype(np.float32)
    whole = expected(op, arrays, merges, added, out_dtype)
    spec = ranks.module.ReduceSpec(counts, merges, bounds, outer, op, gather)
    calls, outs, sources = [], [], []
    for rank, window in enumerate(ranks.sets[number]):
        odd = inside[0] and not (
            rank == 1 and inside == (True, False)
        )  # rank 1 differs from others
        source = ranks.put(rank, arrays[rank], inside=odd)
        there = None if added is None else ranks.put(rank, added, inside=False)
        low, high = bounds[rank : rank + 2]
        if in_place:
            out = source[-1, 0] if gather else source[0, 0, low:high]
        else:
            shape = (n,) if gather else (outer, high - low)
            out = ranks.empty(rank, shape, out_dtype, inside=inside[1])
        calls.append(window.reduction(source, spec, there, out))
        outs.append(out)
        sources.append(source)
    for again in range(repeat):
        if again and in_place:
            for source, array in zip(sources, arrays, strict=True):
                source[...] = ranks.xp.asarray(array)
        ranks.collect(calls, number)
        for rank, out in enumerate(outs):
            want = whole[0] if gather else whole[:, bounds[rank] : bounds[rank + 1]]
            assert ranks.get(out).tobytes() == want.tobytes(), (rank, n, calls[0].once)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_sums_of_floats_are_the_tree_of_the_cpu(size: int) -> None:
    for once, (dtype, out_dtype), n in itertools.product((None, 0), FLOATS, SIZES):
        ranks = Ranks(size, once=once)
        for inside in ((True, True), (False, False), (True, False), (False, True)):
            check_reduction(ranks, n, dtype, out_dtype, inside=inside)
        ranks.close()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_integers_have_no_order_and_wrap_around(op: str, dtype: Any) -> None:
    for size, once in itertools.product((1, 2, 3), (None, 0)):
        ranks = Ranks(size, once=once)
        for n, inside in itertools.product((0, 1, 333), (True, False)):
            check_reduction(ranks, n, dtype, dtype, op=op, inside=(inside, inside))
            check_reduction(
                ranks, n, dtype, dtype, op=op, inside=(inside, inside), gather=False, outer=2
            )
        ranks.close()


@pytest.mark.parametrize(("size", "leaves"), [(2, 3), (3, 8), (3, 7), (4, 32), (5, 16)])
def test_leaves_that_ranks_share_unevenly(size: int, leaves: int) -> None:
    for once, dtype in itertools.product((None, 0), (np.float32, BFLOAT16)):
        ranks = Ranks(size, once=once, staging=16384)
        for n, inside in itertools.product((5, 300), (True, False)):
            for in_place in (False, True):
                check_reduction(
                    ranks,
                    n,
                    dtype,
                    dtype,
                    leaves=leaves,
                    inside=(inside, inside),
                    in_place=in_place,
                )
        ranks.close()


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_reduce_scatter_along_any_axis(size: int) -> None:
    for once, dtype, n in itertools.product((None, 0), (np.float32, BFLOAT16), (0, 3, 64, 200)):
        ranks = Ranks(size, once=once)
        for inside, outer in itertools.product((True, False), (1, 2, 5)):
            check_reduction(
                ranks, n, dtype, dtype, gather=False, outer=outer, inside=(inside, True)
            )
        check_reduction(ranks, n, dtype, dtype, gather=False, in_place=True, repeat=3)
        ranks.close()


def test_a_bias_is_added_before_the_one_rounding() -> None:
    for size, once, dtype in itertools.product((1, 2, 3), (None, 0), (np.float32, BFLOAT16)):
        ranks = Ranks(size, once=once)
        for n, bias in ((12, 4), (900, 100), (77, 77), (40, 1)):
            check_reduction(ranks, n, dtype, dtype, bias=bias)
            check_reduction(ranks, n, dtype, dtype, bias=bias, gather=False, inside=(False, True))
        check_reduction(ranks, 60, dtype, dtype, bias=60, gather=False, outer=3)
        ranks.close()


@pytest.mark.parametrize("order", [0, 1, 7, 8])
def test_in_place_again_and_again(order: int) -> None:
    """Whoever comes early must not write over what another still reads."""
    found = kernels("cuda")
    if hasattr(found, "set_fiber_order"):
        found.set_fiber_order(order)
    try:
        for size, once in ((2, None), (2, 0), (3, 0), (4, 0)):
            ranks = Ranks(size, once=once)
            for inside in (True, False):
                check_reduction(
                    ranks,
                    400,
                    np.float32,
                    np.float32,
                    in_place=True,
                    repeat=8,
                    inside=(inside, inside),
                )
            ranks.close()
    finally:
        if hasattr(found, "set_fiber_order"):
            found.set_fiber_order(0)


def test_arrays_at_odd_addresses() -> None:
    for size, once, dtype in itertools.product((2, 3), (None, 0), (np.float32, BFLOAT16)):
        ranks = Ranks(size, once=once)
        for skipped in (1, 2, 3):
            for rank in range(size):
                ranks.used[rank] += skipped * np.dtype(dtype).itemsize
            check_reduction(ranks, 257, dtype, dtype)
            check_reduction(ranks, 256, dtype, dtype, unit=16)
            check_reduction(ranks, 48 * size, dtype, dtype, gather=False, outer=3)  # of many rows
        ranks.close()


# --- residual and norm ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["residual", "layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_what_follows_a_sum_gives_the_bits_of_the_ops_apart(kind: str, dtype: Any) -> None:
    apart = kernels("cpu")
    for size, once, (rows, channels) in itertools.product(
        (1, 2, 3), (None, 0), ((5, 24), (9, 33), (1, 130))
    ):
        ranks = Ranks(size, once=once)
        counts, merges = leaves_of(size, 2 * size)
        arrays = nodes_of(counts, rows * channels, np.float32 if rows == 9 else dtype)
        bias = RNG.standard_normal(channels).astype(np.float32)
        residual = RNG.standard_normal((rows, channels)).astype(dtype)
        weight, shift = (
            RNG.standard_normal(channels).astype(dtype if channels == 33 else np.float32)
            for _ in "wb"
        )
        plain = tree_of([x for array in arrays for x in array], merges, bias, dtype).reshape(
            rows, channels
        )
        stream, normed = np.empty_like(plain), np.empty_like(plain)
        apart.add([residual, plain], stream)
        mean, rstd = np.empty(rows, np.float32), np.empty(rows, np.float32)
        if kind == "layer_norm":
            apart.layer_norm_forward(stream, None, weight, shift, 1e-5, None, normed, mean, rstd)
        elif kind == "rms_norm":
            apart.rms_norm_forward(stream, None, weight, 1e-5, None, normed, rstd)
        spec = ranks.module.ReduceSpec(
            counts, merges, even(rows * channels, size, channels), 1, "sum", True
        )
        for inside in (True, False):
            calls, found = [], []
            for rank, window in enumerate(ranks.windows):
                there = [
                    ranks.put(rank, x, inside=inside)
                    for x in (arrays[rank], bias, residual, weight, shift)
                ]
                out, after = (
                    ranks.empty(rank, (rows, channels), dtype, inside=inside) for _ in "on"
                )
                means, scales = (ranks.empty(rank, (rows,), np.float32) for _ in "ms")
                norm: Any = None
                if kind == "layer_norm":
                    norm = (there[3], there[4], 1e-5, after, means, scales)
                elif kind == "rms_norm":
                    norm = (there[3], None, 1e-5, after, None, scales)
                if rows == 5:
                    out = there[2]  # the stream takes the residual's place
                calls.append(window.reduction(there[0], spec, there[1], out, there[2], norm))
                found.append((out, after, means, scales))
            ranks.collect(calls)
            for out, after, means, scales in found:
                assert ranks.get(out).tobytes() == stream.tobytes()
                if kind != "residual":
                    assert ranks.get(after).tobytes() == normed.tobytes()
                    assert ranks.get(scales).tobytes() == rstd.tobytes()
                if kind == "layer_norm":
                    assert ranks.get(means).tobytes() == mean.tobytes()
        ranks.close()


# --- refusals -------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit_are_refused() -> None:
    ranks = Ranks(2)
    window, module = ranks.windows[0], ranks.module
    x, out = ranks.empty(0, (1, 1, 8), np.float32), ranks.empty(0, (8,), np.float32)
    ints = ranks.empty(0, (8,), np.int32)

    def spec(
        nodes: Any = (1, 1), merges: Any = (0, 1), bounds: Any = (0, 4, 8), **more: Any
    ) -> Any:
        return module.ReduceSpec(
            list(nodes),
            list(merges),
            list(bounds),
            1,
            more.get("op", "sum"),
            more.get("gather", True),
        )

    norm = (
        out[:4],
        None,
        1e-5,
        ranks.empty(0, (8,), np.float32),
        None,
        ranks.empty(0, (2,), np.float32),
    )
    refused = [
        (
            "3 nodes of|are not 2 x",
            lambda: window.reduction(x, spec(nodes=(2, 1), merges=(0, 0, 2)), None, out),
        ),
        ("the bounds", lambda: window.reduction(x, spec(bounds=(0, 9, 8)), None, out)),
        ("out is", lambda: window.reduction(x, spec(), None, out[:4])),
        ("cannot reduce", lambda: window.reduction(x, spec(), None, ints)),
        ("cannot reduce", lambda: window.reduction(x, spec(op="max"), None, out)),
        ("no reduction", lambda: window.reduction(x, spec(op="mean"), None, out)),
        ("merges", lambda: window.reduction(x, spec(merges=(0, 0)), None, out)),
        ("merges", lambda: window.reduction(x, spec(merges=(1, 0)), None, out)),
        (
            "shares memory",
            lambda: window.reduction(x[..., :7], spec(bounds=(0, 3, 7)), None, x[0, 0, 1:]),
        ),
        ("bias", lambda: window.reduction(x, spec(), out[:3], out)),
        ("residual", lambda: window.reduction(x, spec(gather=False), None, out[:4], out[4:])),
        ("residual", lambda: window.reduction(x, spec(), None, out, ints)),
        (
            "bounds are multiples",
            lambda: window.reduction(x, spec(bounds=(0, 3, 8)), None, out, None, norm),
        ),
        ("all_gather of", lambda: window.all_gather(x, [4, 4], out)),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=message):
            call()
    ranks.close()
    with pytest.raises(ValueError, match="closed"):
        window.launch(window.barrier())


# --- the optimizer's step -------------------------------------------------------------------------


@pytest.mark.parametrize("parts_summed", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_update_inside_gives_the_bits_of_the_ops_apart(size: int, parts_summed: bool) -> None:
    """reduce_scatter, adamw on the own slice, all_gather; or the last two."""
    apart = kernels("cpu")
    settings = (0.5, 1e-3, 0.9, 0.99, 1e-8, 0.1)
    for (dtype, weight_dtype), n in itertools.product(FLOATS, (1, 64, 999)):
        ranks = Ranks(size, staging=2048, split=parts_summed and n == 64)
        counts, merges = leaves_of(size, 2 * size)
        bounds = even(n, size)
        spec = ranks.module.ReduceSpec(counts, merges, bounds, 1, "sum", True)
        state = [RNG.uniform(0, 1, n).astype(np.float32) for _ in "mfs"]
        weight = state[0].astype(weight_dtype)
        for inside in (True, False):
            shards = [
                [ranks.put(rank, x[bounds[rank] : bounds[rank + 1]]) for x in state]
                for rank in range(size)
            ]
            weights = [ranks.put(rank, weight, inside=inside) for rank in range(size)]
            want, after = [x.copy() for x in state], weight.copy()
            for step in (1, 2):
                arrays = nodes_of(counts, n, dtype)
                grad = tree_of([x[0] for array in arrays for x in array], merges, None, np.float32)
                apart.adamw(grad, *settings, step, *want, after)
                calls = []
                for rank, window in enumerate(ranks.windows):
                    adamw = (*settings, step, *shards[rank])
                    if parts_summed:
                        own = ranks.put(rank, grad[bounds[rank] : bounds[rank + 1]])
                        calls.append(window.update_gather(own, bounds, adamw, weights[rank]))
                    else:
                        nodes = ranks.put(rank, arrays[rank], inside=inside)
                        calls.append(window.reduce_update_gather(nodes, spec, adamw, weights[rank]))
                assert not any(call.once for call in calls)
                ranks.collect(calls)
                for rank, found in enumerate(weights):
                    assert ranks.get(found).tobytes() == after.tobytes(), (rank, step)
                    for shard, whole in zip(shards[rank], want, strict=True):
                        own = whole[bounds[rank] : bounds[rank + 1]]
                        assert ranks.get(shard).tobytes() == own.tobytes()
        ranks.close()
