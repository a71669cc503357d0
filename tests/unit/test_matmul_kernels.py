"""matmul of both backends against float64, and bits that leaves, samples and sizes leave alone."""

from itertools import pairwise

import numpy as np
import pytest
from kernel_backends import in_orders
from kernel_checks import BFLOAT16, FLOAT32, STORAGE, random, wide
from matmul_checks import run, same_bits, strided, tree_sum

from plait import _cpu
from plait.comm import tree

SHAPES = [
    (1, 1, 1),
    (2, 3, 5),
    (70, 100, 1),
    (13, 31, 33),
    (64, 64, 64),
    (150, 90, 139),
    (40, 160, 72),
]


def stored(x, transposed, gap):
    return strided(np.ascontiguousarray(x.T) if transposed else x, gap)


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_close_to_float64(kernels, ta, tb):
    for number, (m, k, n) in enumerate(SHAPES):
        for gap in (0, 8 - k % 8, 3):
            a, b = random((m, k), BFLOAT16), random((k, n), BFLOAT16, 1)
            dtype = STORAGE[(number + gap) % 2]
            bias = random((n,), STORAGE[number % 2], 2)
            exact = wide(a) @ wide(b) + wide(bias)
            scale = np.abs(wide(a)) @ np.abs(wide(b)) + np.abs(wide(bias))
            got = run(
                stored(a, ta, gap), stored(b, tb, gap), ta, tb,
                bias=bias, dtype=dtype, kernels=kernels, leaves=[0, k // 3, k // 2, k],
            )  # fmt: skip
            rounding = 2.0**-8 * np.abs(exact) if dtype == BFLOAT16 else 0
            assert (np.abs(wide(got) - exact) <= (k + 4) * 2.0**-24 * scale + rounding).all()


@pytest.mark.parametrize("types", [(0, 0), (0, 1), (1, 0)])
def test_float32_has_the_bits_of_the_cpu(kernels, types):
    for number, (m, k, n) in enumerate([*SHAPES, (0, 3, 4), (3, 0, 4), (3, 3, 0)]):
        ta, tb = number % 2 == 1, number // 2 % 2 == 1
        a, b = random((m, k), STORAGE[types[0]]), random((k, n), STORAGE[types[1]], 1)
        a, b = stored(a, ta, number % 3), stored(b, tb, number % 4)
        for leaves, bias in [([0, k], None), ([0, k // 3, k // 3, k // 2, k], random((n,)))]:
            options = {"leaves": leaves, "bias": bias, "dtype": a.dtype}
            same_bits(run(a, b, ta, tb, kernels=kernels, **options), run(a, b, ta, tb, **options))
        out = random((m, n), FLOAT32, 3)
        expected = run(a, b, ta, tb, out=out.copy(), accumulate=True)
        same_bits(run(a, b, ta, tb, out=out, accumulate=True, kernels=kernels), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 13])
def test_leaves_are_merged_by_the_tree(kernels, count):
    for m, k, n in [(5, 24, 3), (70, 90, 66), *([(260, 64, 140)] if count == 3 else [])]:
        a, b = random((m, k), BFLOAT16), random((k, n), BFLOAT16, 1)
        bias = random((n,), BFLOAT16, 2)
        leaves = [i * k // count for i in range(count + 1)]
        parts = [run(a[:, i:j], b[i:j], kernels=kernels) for i, j in pairwise(leaves)]
        expected = tree_sum(parts) + bias.astype(FLOAT32)
        same_bits(run(a, b, leaves=leaves, bias=bias, kernels=kernels), expected)
        short = run(a, b, leaves=leaves, bias=bias, dtype=BFLOAT16, kernels=kernels)
        same_bits(short, expected.astype(BFLOAT16))


@pytest.mark.parametrize("period", [1, 7, 16, 33, 40, 96])
def test_samples_do_not_share_steps(kernels, period):
    """However many samples a call has, their sum is one chain."""
    a, b = (random((5 * period, n), BFLOAT16, n) for n in (17, 35))
    whole = run(a, b, True, period=period, kernels=kernels)
    for at_once in (1, 2):
        out = np.zeros_like(whole)
        for i in range(0, 5 * period, at_once * period):
            rows = slice(i, i + at_once * period)
            run(a[rows], b[rows], True, out=out, accumulate=True, period=period, kernels=kernels)
        same_bits(out, whole)


def test_tiles_and_neighbours_change_no_bits(kernels):
    """Other rows and columns, and with them other tiles, come and go."""
    a, b = random((270, 100), BFLOAT16), random((100, 200), BFLOAT16, 1)
    leaves = [0, 30, 64, 100]
    whole = run(a, b, leaves=leaves, kernels=kernels)
    same_bits(run(a[:70], b, leaves=leaves, kernels=kernels), whole[:70])
    same_bits(run(a[17:18], b, leaves=leaves, kernels=kernels), whole[17:18])
    same_bits(run(a, b[:, 40:43], leaves=leaves, kernels=kernels), whole[:, 40:43])
    out = np.full((270, 230), 5, FLOAT32)
    run(a, b, leaves=leaves, out=out[:, 11:211], kernels=kernels)
    same_bits(out[:, 11:211], whole)
    assert (out[:, :11] == 5).all()
    assert (out[:, 211:] == 5).all()
    a[3, 2] = np.nan
    got = run(a, b, kernels=kernels)
    assert np.isnan(got[3]).all()
    assert np.isfinite(np.delete(got, 3, 0)).all()


def stack_of_leaves(parts, merges, slot, stack):
    """What matmul_backward_weight leaves in a stack, one leaf after another."""
    stack = [*stack[:slot]]
    for part, count in zip(parts, merges, strict=True):
        stack.append(part)
        for _ in range(count):
            upper = stack.pop()
            stack[-1] = stack[-1] + upper
    return stack


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("size", [(5, 9), (70, 66), (270, 150)])
def test_stack_of_weight_gradients(kernels, dtype, size):
    choose = np.random.default_rng(size[0])
    for count in (1, 2, 3, 6, 11) if size[0] < 100 else (4,):
        slot, merges, accumulate = int(choose.integers(0, 3)), [], bool(choose.integers(0, 2))
        held = slot
        for _ in range(count):
            merges.append(int(choose.integers(0, min(held, 3) + 1)))
            held += 1 - merges[-1]
        leaves = np.sort(np.append([0, 70], choose.integers(0, 71, count - 1))).tolist()
        rows, columns = random((70, size[0]), dtype), random((70, size[1]), dtype, 1)
        slots = max(held, slot + 1)
        stack = random((slots, *size), FLOAT32, 5)
        parts = [
            run(
                rows[i:j], columns[i:j], True, kernels=kernels, accumulate=accumulate and i == 0,
                out=stack[slot].copy() if accumulate and n == 0 else np.zeros(size, FLOAT32),
            )
            for n, (i, j) in enumerate(pairwise(leaves))
        ]  # fmt: skip
        expected = stack_of_leaves(parts, merges, slot, list(stack))
        kernels.matmul_backward_weight(rows, columns, leaves, merges, slot, accumulate, 0, stack)
        for got, right in zip(stack, expected, strict=False):
            same_bits(got, right)


def test_any_number_of_leaves(kernels):
    count = 300
    rows, columns = random((2 * count, 5), BFLOAT16), random((2 * count, 3), BFLOAT16, 1)
    leaves = list(range(0, 2 * count + 1, 2))
    parts = [run(rows[i : i + 2], columns[i : i + 2], True, kernels=kernels) for i in leaves[:-1]]
    merges = tree.merges(count, [(i, i + 1) for i in range(count)])
    stack = np.full((2, 5, 3), 7, FLOAT32)
    kernels.matmul_backward_weight(rows, columns, leaves, merges, 1, False, 0, stack)
    same_bits(stack[1], tree_sum(parts))
    assert (stack[0] == 7).all()


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("leaves", [[0, 70], [0, 20, 40, 70]])
def test_order_of_threads(kernels, dtype, leaves):
    a, b = random((130, 70), dtype), random((70, 270), dtype, 1)
    results = in_orders(kernels, lambda: run(a, b, leaves=leaves, kernels=kernels))
    for got in results[1:]:
        same_bits(got, results[0])


def test_errors_are_those_of_the_cpu(kernels):
    a, b, out = random((2, 3)), random((3, 5)), random((2, 5))
    cases = [
        (a, random((4, 5)), [0, 3], False, 0, None, out),
        (a, random((3, 4)), [0, 3], False, 0, None, out),
        (a, b, [0, 2], False, 0, None, out),
        (a, b, [0, 2, 3], True, 0, None, out),
        (a, b, [0, 3], False, -1, None, out),
        (a, b, [0, 3], False, 0, random((4,)), out),
        (a, random((5, 3)).T, [0, 3], False, 0, None, out),
        (a[0], b, [0, 3], False, 0, None, out),
        (a, b, [0, 3], False, 0, None, out.astype(BFLOAT16)),
        (a.astype(np.int32), b, [0, 3], False, 0, None, out),
    ]
    for x, y, leaves, accumulate, period, bias, to in cases:
        messages = []
        for module in (_cpu, kernels):
            with pytest.raises(ValueError, match="matmul") as caught:
                module.matmul(x, y, False, False, leaves, accumulate, period, bias, to)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
