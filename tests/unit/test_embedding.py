"""Rows by token, and their gradients as chains in token order."""

import numpy as np
import pytest
from kernel_checks import STORAGE, assert_same_bits, bits, random

from plait import _cpu


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize(
    ("count", "rows", "channels"), [(0, 4, 8), (1, 1, 1), (50, 13, 37), (9, 0, 5)]
)
def test_forward(count, rows, channels, dtype):
    weight = random((rows, channels), dtype)
    tokens = np.random.default_rng(0).integers(0, 30, count).astype(np.int32)
    out = np.full((count, channels), 7, np.float32).astype(dtype)
    _cpu.embedding_forward(tokens, weight, 8, out)
    for i, token in enumerate(tokens):
        if 8 <= token < 8 + rows:
            assert bits(out[i]) == bits(weight[token - 8])
        else:
            assert bits(out[i]) == bytes(channels * dtype.itemsize)  # +0, also outside the shard


def backward(tokens, grad, first_row, accumulate, out):
    _cpu.embedding_backward(
        tokens, grad, first_row, [0, len(tokens)], [0], 0, accumulate, out[None]
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
def test_backward_is_one_chain_per_row(count, rows, channels, dtype):
    grad = random((count, channels), dtype)
    tokens = np.random.default_rng(0).integers(-2, rows + 5, count).astype(np.int32)
    got = np.full((rows, channels), 5, np.float32)
    backward(tokens, grad, 2, False, got)
    assert bits(got) == bits(chain(tokens, grad, 2, np.zeros_like(got)))
    start = random((rows, channels), seed=9)
    got = start.copy()
    backward(tokens, grad, 2, True, got)
    assert bits(got) == bits(chain(tokens, grad, 2, start))


def test_backward_in_pieces_continues_the_chain():
    tokens, grad = np.zeros(60, np.int32), random((60, 20))
    whole, pieces = np.empty((1, 20), np.float32), np.empty((1, 20), np.float32)
    backward(tokens, grad, 0, False, whole)
    backward(tokens[:7], grad[:7], 0, False, pieces)
    backward(tokens[7:], grad[7:], 0, True, pieces)
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


def test_errors():
    with pytest.raises(ValueError, match=r"tokens is \(2,\) int64, expected int32"):
        _cpu.embedding_forward(np.zeros(2, np.int64), random((3, 4)), 0, random((2, 4)))
