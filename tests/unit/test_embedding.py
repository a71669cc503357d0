"""Rows by token, and their gradients as chains in token order."""

import kernel_backends
import numpy as np
import pytest
from kernel_bits import assert_cpu_bits
from kernel_checks import STORAGE, assert_same_bits, bits, random

from plait import _cpu


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize(
    ("count", "rows", "channels"), [(0, 4, 8), (1, 1, 1), (50, 13, 37), (9, 0, 5)]
)
def test_forward(kernels, count, rows, channels, dtype):
    weight = random((rows, channels), dtype)
    tokens = np.random.default_rng(0).integers(0, 30, count).astype(np.int32)
    out = np.full((count, channels), 7, np.float32).astype(dtype)
    kernels.embedding_forward(tokens, weight, 8, out)
    for i, token in enumerate(tokens):
        if 8 <= token < 8 + rows:
            assert bits(out[i]) == bits(weight[token - 8])
        else:
            assert bits(out[i]) == bytes(channels * dtype.itemsize)  # +0, also outside the shard


def backward(tokens, grad, first_row, accumulate, out, kernels=_cpu):
    kernels.embedding_backward(
        tokens, grad, first_row, [0, len(tokens)], [0], 0, accumulate, None, out[None]
    )


def chain(tokens, grad, first_row, start):
    out = start.copy()
    for token, row in zip(tokens, grad.astype(np.float32), strict=True):
        if 0 <= token - first_row < len(out):
            out[token - first_row] += row
    return out


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize(
    ("count", "rows", "channels"), [(0, 4, 8), (1, 1, 1), (200, 13, 37), (99, 5, 300)]
)
def test_backward_is_one_chain_per_row(kernels, count, rows, channels, dtype):
    grad = random((count, channels), dtype)
    tokens = np.random.default_rng(0).integers(-2, rows + 5, count).astype(np.int32)
    got = np.full((rows, channels), 5, np.float32)
    backward(tokens, grad, 2, False, got, kernels)
    assert bits(got) == bits(chain(tokens, grad, 2, np.zeros_like(got)))
    start = random((rows, channels), seed=9)
    got = start.copy()
    backward(tokens, grad, 2, True, got, kernels)
    assert bits(got) == bits(chain(tokens, grad, 2, start))


def test_backward_in_pieces_continues_the_chain(kernels):
    tokens, grad = np.zeros(60, np.int32), random((60, 20))
    whole, pieces = np.empty((1, 20), np.float32), np.empty((1, 20), np.float32)
    backward(tokens, grad, 0, False, whole, kernels)
    backward(tokens[:7], grad[:7], 0, False, pieces, kernels)
    backward(tokens[7:], grad[7:], 0, True, pieces, kernels)
    assert bits(pieces) == bits(whole)


def test_bits():
    tokens = (np.arange(500) ** 2 % 37).astype(np.int32)
    weight, grad = random((37, 700)), random((500, 700))

    def call():
        out, grad_weight = np.empty_like(grad), np.empty_like(weight)
        _cpu.embedding_forward(tokens, weight, 0, out)
        backward(tokens, grad, 0, False, grad_weight)
        return out, grad_weight

    assert_same_bits(call)


def test_errors(kernels):
    with pytest.raises(ValueError, match=r"tokens is \(2,\) int64, expected int32"):
        kernels.embedding_forward(np.zeros(2, np.int64), random((3, 4)), 0, random((2, 4)))


@pytest.mark.parametrize("dtype", STORAGE)
def test_rows_that_have_nothing_need_not_be_visited(kernels, dtype):
    """Microbatches of two leaves each, over a stack that held something else before."""
    rows, channels, count = 40, 70, 12
    random = np.random.default_rng(3)
    stacks = [np.full((3, rows, channels), 7, np.float32) for _ in range(2)]
    touched = np.zeros(0, np.int64)
    for slot, merges, accumulate in (
        (0, [0, 1], False),
        (1, [0, 2], False),
        (1, [0, 0], False),
        (2, [2, 0], True),  # slot 1, which ends here, begins again
        (1, [0, 2], True),
    ):
        tokens = random.integers(5, 5 + rows // 3, count).astype(np.int32)
        grad = (random.standard_normal((count, channels)) ** 5).astype(dtype)
        touched = np.union1d(touched, tokens - 5)
        for stack, visited in zip(stacks, (None, touched), strict=True):
            kernels.embedding_backward(
                tokens, grad, 5, [0, 5, count], merges, slot, accumulate, visited, stack
            )
    assert np.count_nonzero(stacks[0][0].any(1)) == len(touched) < rows
    assert bits(stacks[0][0]) == bits(stacks[1][0])


def test_rows_must_hold_every_token():
    tokens, grad = np.array([3, 1, 3], np.int32), np.ones((3, 2), np.float32)
    stack = np.zeros((2, 4, 2), np.float32)
    for rows, match in (
        ([1], "rows lack row 3 of a token"),
        ([0, 3], "rows lack row 1 of a token"),
        ([1, 1, 3], "rows must rise from 0 to below 4, got 1 at 1"),
        ([1, 3, 4], "got 4 at 2"),
        ([-1, 1, 3], "got -1 at 0"),
    ):
        with pytest.raises(ValueError, match=match):
            _cpu.embedding_backward(
                tokens, grad, 0, [0, 3], [1], 1, True, np.array(rows, np.int64), stack
            )
    with pytest.raises(ValueError, match="rows"):
        _cpu.embedding_backward(tokens, grad, 0, [0, 3], [1], 1, True, tokens, stack)


@pytest.mark.cuda
def test_rows_that_lack_a_token_are_told_when_faults_are_asked_for():
    cuda = kernel_backends.kernels("cuda")
    tokens, grad = np.array([3, 1, 3], np.int32), np.ones((3, 2), np.float32)
    for rows in ([1], [0, 3], [1, 1, 3], [1, 3, 4], [-1, 1, 3], []):
        stack = np.zeros((2, 4, 2), np.float32)
        visited = np.array(rows, np.int64)
        cuda.embedding_backward(tokens, grad, 0, [0, 3], [1], 1, True, visited, stack)
        with pytest.raises(ValueError, match="hold the row of every token"):
            cuda.check_faults()
    cuda.check_faults()


def random_merges(generator, leaves, open_slots):
    """Of a stack with open_slots in use, any that leave at least one."""
    merges = []
    for _ in range(leaves):
        open_slots += 1
        merges.append(int(generator.integers(0, min(open_slots, 3))))
        open_slots -= merges[-1]
    return merges


@pytest.mark.cuda
@pytest.mark.parametrize("slot", [0, 1, 3])
@pytest.mark.parametrize("visited", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("count", "rows", "channels"), [(0, 3, 5), (40, 9, 6), (130, 3, 2), (90, 300, 3)]
)
def test_stacks_have_the_cpus_bits(count, rows, channels, accumulate, visited, slot):
    """Any leaves and merges, one token many times, tokens of other shards, any order of threads."""
    generator = np.random.default_rng([count, rows, accumulate, visited, slot])
    tokens = generator.integers(-2, rows + 3, count).astype(np.int32)
    tokens[::3] = 1
    grad = random((count, channels), seed=slot) ** 5
    leaves = [0, *np.sort(generator.integers(0, count + 1, 4)).tolist(), count]
    merges = random_merges(generator, len(leaves) - 1, slot)
    start = random((8, rows, channels), seed=7)
    here = tokens[(tokens >= 0) & (tokens < rows)]
    touched = np.unique(np.append(here, [0, rows - 1])).astype(np.int64)

    def call(kernels):
        stack = start.copy()
        chosen = touched if visited else None
        kernels.embedding_backward(tokens, grad, 0, leaves, merges, slot, accumulate, chosen, stack)
        return [stack]

    assert_cpu_bits(call)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", STORAGE)
def test_many_tokens_are_sorted(dtype):
    """More than one tile of the sort, keys of three digits, unaligned gradients."""
    rows, count = 70_000, 2500
    tokens = (np.random.default_rng(0).integers(0, 300, count) * 233).astype(np.int32)
    grad = random((count + 1, 2), dtype)
    table = random((rows, 2), dtype)

    def call(kernels):
        out = np.full((1, rows, 2), 7, np.float32)
        odd = np.full((1, rows, 1), 7, np.float32)
        kernels.embedding_backward(tokens, grad[1:], 0, [0, count], [0], 0, False, None, out)
        ones = grad.reshape(-1)[1 : count + 1].reshape(-1, 1)
        kernels.embedding_backward(tokens, ones, 0, [0, count], [0], 0, False, None, odd)
        found = np.empty((100, 2), table.dtype)
        kernels.embedding_forward(tokens[:100], table, 0, found)
        return out, odd, found

    assert_cpu_bits(call)


def test_wide_rows(kernels):
    tokens, grad = np.array([1, 0, 1], np.int32), random((3, 1030))
    out = np.empty((2, 1030), np.float32)
    backward(tokens, grad, 0, False, out, kernels)
    assert bits(out) == bits(chain(tokens, grad, 0, np.zeros_like(out)))
