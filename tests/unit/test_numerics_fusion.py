"""Rule 9 of docs/numerics.md: what is fused gives the bits of its parts, computed one by one by
other kernels. Rule 10: attention's parts and their order, written out."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from kernel_cases import SCALE, attend, like
from kernel_checks import EMULATED, FLOAT32, STORAGE, bits, random

from plait import _cpu
from plait.comm import Leaves
from plait.comm.tree import merges
from plait.train.numerics import PATHS

Array = np.ndarray
every_type = pytest.mark.parametrize("dtype", STORAGE, ids=str)


def product(
    a: Array, b: Array, start: Array | None = None, dtype: np.dtype[Any] = FLOAT32
) -> Array:
    """a b of matrices that are rounded to dtype first; float32, each element one chain from zero,
    or on from start."""
    a, b = (np.ascontiguousarray(x, dtype) for x in (a, b))
    out = np.full((len(a), b.shape[1]), np.nan, FLOAT32) if start is None else start
    _cpu.matmul(a, b, False, False, [0, len(b)], start is not None, 0, None, out)
    return out


@every_type
@pytest.mark.parametrize("count", [1, 3, 8])
def test_rule_9_matmul_with_leaves_and_bias(count: int, dtype: np.dtype) -> None:
    """As row-parallel ranks compute it: float32 leaves, their tree, the bias, one rounding."""
    a, b, bias = random((37, 90), dtype), random((90, 41), dtype, 1), random((41,), dtype, 2)
    cut = [leaf * 90 // count for leaf in range(count + 1)]
    fused = like(a, (37, 41))
    _cpu.matmul(a, b, False, False, cut, False, 0, bias, fused)
    parts = [product(a[:, i:j], b[i:j]) for i, j in pairwise(cut)]
    whole, apart = np.empty((37, 41), FLOAT32), like(a, (37, 41))
    _cpu.tree_sum(parts, Leaves.even(count, count).merges(), None, whole)
    _cpu.convert(whole + bias.astype(FLOAT32), apart)
    assert bits(fused) == bits(apart)
    _cpu.tree_sum(parts, Leaves.even(count, count).merges(), bias.astype(FLOAT32), apart)
    assert bits(fused) == bits(apart)


@every_type
def test_rule_9_swiglu_is_silu_times_up(dtype: np.dtype) -> None:
    """Its silu is never stored: float32 whatever the storage."""
    gate, up, grad = (random((7, 301), dtype, seed, 2) for seed in range(3))
    fused, apart = like(gate), like(gate)
    _cpu.swiglu_forward(gate, up, fused)
    silu = np.empty(gate.shape, FLOAT32)
    wide = gate.astype(FLOAT32)
    _cpu.swiglu_forward(wide, np.ones_like(silu), silu)
    _cpu.convert(silu * up.astype(FLOAT32), apart)
    assert bits(fused) == bits(apart)
    grads = like(gate), like(gate)
    _cpu.swiglu_backward(grad, gate, up, *grads)
    _cpu.convert(grad.astype(FLOAT32) * silu_of(wide), apart)
    assert bits(grads[1]) == bits(apart)


def silu_of(x: Array) -> Array:
    """x sigmoid(x) as backward has it: the gradient of up where that of the output is 1."""
    ones, found = np.ones_like(x), (np.empty_like(x), np.empty_like(x))
    _cpu.swiglu_backward(ones, x, ones, *found)
    return found[1]


@every_type
def test_rule_9_clipping_inside_adamw_and_sgd(dtype: np.dtype) -> None:
    n, scale = 3001, float(np.float32(0.3))
    grad, state = random((n,)), [random((n,), seed=s) for s in (1, 2)] + [np.abs(random((n,)))]
    adamw = 1e-3, 0.9, 0.95, 1e-8, 0.1, 3
    for name, settings, used in (("adamw", adamw, 3), ("sgd", (1e-3, 0.9, 0.1), 2)):
        found = []
        for gradient, factor in ((grad, scale), (grad * np.float32(scale), 1.0)):
            arrays = [*(x.copy() for x in state[:used]), np.empty(n, dtype)]
            getattr(_cpu, name)(gradient, factor, *settings, *arrays)
            found.append([bits(x) for x in arrays])
            rounded = np.empty(n, dtype)
            _cpu.convert(arrays[0], rounded)  # the master, to the type of the weight
            assert bits(rounded) == bits(arrays[-1])
        assert found[0] == found[1]


@every_type
def test_rule_9_batch_norm_is_its_statistics_and_their_use(dtype: np.dtype) -> None:
    x, weight, bias = random((61, 70), dtype, 1, 3), random((70,), dtype, 2), random((70,), dtype)
    fused, apart, moments = like(x), like(x), np.empty((2, 70), FLOAT32)
    _cpu.batch_norm_forward(x, weight, bias, 1e-5, True, *moments, fused)
    _cpu.batch_norm_forward(x, weight, bias, 1e-5, False, *moments.copy(), apart)
    assert bits(fused) == bits(apart)
    sums, n = np.empty((1, 70), FLOAT32), np.float32(61)
    _cpu.sum_rows(x[None], False, sums[0])
    assert bits(moments[0]) == bits(sums[0] / n)


@every_type
@pytest.mark.parametrize("count", [1, 3, 5])
def test_rule_9_cross_entropy_over_leaves(count: int, dtype: np.dtype) -> None:
    """Each leaf's sum is about its own maximum; they meet in the tree; the gradient is that of the
    merged softmax, rounded once."""
    logits, rows = random((9, 32 * count), dtype, scale=4), 9
    targets, vocabulary = np.arange(rows, dtype=np.int32) * 3, 32 * count - 5
    parts, picked = np.empty((count, 2, rows), FLOAT32), np.zeros(rows, FLOAT32)
    for leaf, part in enumerate(parts):
        own = logits[:, 32 * leaf : 32 * leaf + 32]
        _cpu.cross_entropy_statistics(own, targets, 32 * leaf, vocabulary, *part, picked)
        last = min(vocabulary - 32 * leaf, 32)
        assert bits(part[0]) == bits(own.astype(FLOAT32)[:, :last].max(1))
        assert bits(part[1]) == bits(lanes(exp(own[:, :last], part[0][:, None])))
    merged = np.empty((2, rows), FLOAT32)
    _cpu.cross_entropy_merge(parts, merges(count, [(i, i + 1) for i in range(count)]), merged)
    stack: list[Array] = []
    for part, times in zip(parts, merges(count, [(i, i + 1) for i in range(count)])):
        stack.append(part)
        for _ in range(times):
            upper, lower = stack.pop(), stack.pop()
            peak = np.maximum(lower[0], upper[0])
            kept = [x[1] * exp(x[0], peak) for x in (lower, upper)]
            stack.append(np.stack([peak, kept[0] + kept[1]]))
    assert bits(merged) == bits(stack[0])
    grad, apart, scale = like(logits), like(logits), np.float32(1 / 3)
    _cpu.cross_entropy_backward(logits, targets, *merged, 0, vocabulary, scale, grad)
    exact = exp(logits, merged[0][:, None]) * (scale / merged[1])[:, None]
    exact[np.arange(rows), targets] -= scale
    exact[:, vocabulary:] = 0
    _cpu.convert(exact, apart)
    assert bits(grad) == bits(apart)


def exp(x: Array, peak: Array) -> Array:
    """The kernels' e^(x - peak): the gradient of a softmax whose sum is 1."""
    x = np.ascontiguousarray(np.broadcast_to(x.astype(FLOAT32), np.broadcast(x, peak).shape))
    difference = (x - np.broadcast_to(peak, x.shape)).reshape(-1, 1)
    rows, out = len(difference), np.empty_like(difference)
    elsewhere, zero = np.full(rows, 7, np.int32), np.zeros(rows, FLOAT32)
    _cpu.cross_entropy_backward(difference, elsewhere, zero, zero + 1, 0, 8, 1.0, out)
    return out.reshape(x.shape)


def log(x: Array) -> Array:
    out, zero = np.empty_like(x), np.zeros_like(x)
    _cpu.cross_entropy_loss(zero, x, zero, np.zeros(len(x), np.int32), out)
    return out


def lanes(x: Array) -> Array:
    """Sums of rows in the order of cpu/vec.hpp: 64 lanes, folded in halves."""
    sums = np.zeros((len(x), 64), FLOAT32)
    for start in range(0, x.shape[1], 64):
        sums[:, : x[:, start : start + 64].shape[1]] += x[:, start : start + 64]
    while sums.shape[1] > 1:
        sums = sums[:, : sums.shape[1] // 2] + sums[:, sums.shape[1] // 2 :]
    return sums[:, 0]


BLOCK = 64


@pytest.fixture(params=[PATHS[0], EMULATED])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """One instruction path of each family."""
    best = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(best)


@every_type
@pytest.mark.parametrize("size", [20, 33, 64])
@pytest.mark.parametrize("length", [50, 151])
def test_rule_10_attention_written_out(length: int, size: int, dtype: np.dtype, path: str) -> None:
    """Two heads of queries on one of keys, causal; blocks of 64 keys and queries. Between the
    products only probabilities and the scores' gradients are rounded to storage, each once, for
    their products alone. In bfloat16 the products are those of matrices."""
    heads: list[Array] = [random((1, length, h, size), dtype, seed=h) for h in (2, 1)]
    q, k, v = heads[0], heads[1], random((1, length, 1, size), dtype, seed=3)
    grad = random(q.shape, dtype, seed=4)
    hidden = np.arange(length)[None] > np.arange(length)[:, None]
    out, log_sum = attend(q, k, v)
    grads = [like(x) for x in (q, k, v)]
    _cpu.attention_backward(grad, q, k, v, out, log_sum, True, SCALE, *grads)

    wide = [x[0].transpose(1, 0, 2).astype(FLOAT32) for x in (q, k, v, grad, out)]
    dk, dv = np.zeros((2, length, size), FLOAT32)
    for h in range(2):
        queries, keys, values, d_out, o = (x[h if len(x) == 2 else 0] for x in wide)
        found, logs = forward(queries, keys, values, hidden, dtype)
        assert same(out[0, :, h], found + np.float32(0))
        assert bits(log_sum[0, h]) == bits(logs)
        p = exp(product(queries, keys.T, dtype=dtype) * np.float32(SCALE), logs[:, None])
        p[hidden] = 0
        delta = lanes(d_out * o)
        ds = p * (product(d_out, values.T, dtype=dtype) - delta[:, None]) * np.float32(SCALE)
        dv, dk = product(p.T, d_out, dv, dtype), product(ds.T, queries, dk, dtype)
        assert same(grads[0][0, :, h], product(ds, keys, dtype=dtype) + np.float32(0))
    assert same(grads[1][0, :, 0], dk + np.float32(0))
    assert same(grads[2][0, :, 0], dv + np.float32(0))


def same(stored: Array, exact: Array) -> bool:
    """exact, rounded once, is what was stored."""
    rounded = np.empty(exact.shape, stored.dtype)
    _cpu.convert(exact, rounded)
    return bits(stored) == bits(rounded)


def forward(
    q: Array, k: Array, v: Array, hidden: Array, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """The online softmax: after each block of keys, what was added before shrinks by e^(old peak -
    new peak)."""
    rows = len(q)
    peak, total = np.full(rows, -np.inf, FLOAT32), np.zeros(rows, FLOAT32)
    out = np.zeros((rows, v.shape[1]), FLOAT32)
    for start in range(0, len(k), BLOCK):
        block = slice(start, start + BLOCK)
        scores: Any = product(q, k[block].T, dtype=dtype) * np.float32(SCALE)
        scores[hidden[:, block]] = -np.inf
        new = np.maximum(peak, scores.max(1))
        p = exp(scores, new[:, None])
        added = np.zeros(rows, FLOAT32)
        for key in p.T:
            added = added + key
        shrink = exp(peak, new)
        # A fused multiply-add, as a matmul of two terms: added * 1, then + total * shrink.
        total = np.stack(
            [product([[a, t]], [[1], [f]])[0, 0] for a, t, f in zip(added, total, shrink)]
        )
        out = product(p, v[block], out * shrink[:, None], dtype)
        peak = new
    return out * (np.float32(1) / total)[:, None], peak + log(total)
