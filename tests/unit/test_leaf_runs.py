"""Rule 9 of docs/numerics.md for gradients whose leaves a kernel merges itself: the bits of leaves
made and merged one by one."""

from itertools import product

import numpy as np
import pytest
from kernel_checks import BFLOAT16, EMULATED, FLOAT32, STORAGE, random

from plait import _cpu
from plait.autograd import SILENT, Observer
from plait.comm.tree import Leaves
from plait.ops.conv import add_weight_grad as add_conv_grad
from plait.ops.embedding import VocabEmbedding
from plait.ops.linear import add_weight_grad
from plait.ops.parameter import Parameter
from plait.ops.position import Share

ROWS, COLUMNS = 37, 41  # of the weight; neither is a multiple of a tile
SHARES = [
    Share(batch, Leaves.even(grains, size), rank, microbatch)
    for batch, (grains, size), microbatch in product(
        (8, 13), ((8, 1), (5, 1), (7, 2), (8, 3)), (None, 1, 2, 3, 5, 13)
    )
    for rank in range(size)
]


class Listening(Observer):
    hears_chains = True

    def __init__(self):
        self.merged_slots = []

    def merged(self, parameter, position, segment, slot):
        self.merged_slots.append(slot)


def weight(share, observer):
    p = Parameter("w", (ROWS, COLUMNS), ((0, ROWS),), (0, ROWS))
    p.grads = np.full((share.slots, ROWS, COLUMNS), np.nan, FLOAT32)
    p.array = np.zeros((ROWS, COLUMNS), FLOAT32)
    p.observer = observer
    return p


def of_matmul(p, position, rows, columns, tokens):
    add_weight_grad(p, position, rows, columns)


def of_conv(p, position, rows, columns, tokens):
    """Of a kernel of 1 x 1 on images of one row."""
    flat = p.grads
    p.grads = flat.reshape(len(flat), ROWS, 1, 1, COLUMNS)
    add_conv_grad(p, position, rows[:, None], columns[:, None], False, 1, 0)
    p.grads = flat


def of_embedding(p, position, rows, columns, tokens):
    class Call:
        saved = (tokens, p, None, 3)

    Call.position = position
    VocabEmbedding.backward(Call, columns)


def of_skip(p, position, rows, columns, tokens):
    if position.first_sample % 2:
        of_matmul(p, position, rows, columns, tokens)
    p.skip(position)


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("length", [3, 18, 21])
@pytest.mark.parametrize("op", [of_matmul, of_conv, of_embedding, of_skip])
def test_rule_9_leaves_merged_by_the_kernel(op, length, dtype):
    merged = 0
    rows = random((13, length, ROWS), dtype, 1)
    columns = (random((13, length, COLUMNS), FLOAT32, 2) ** 5).astype(dtype)
    tokens = np.random.default_rng(3).integers(0, ROWS + 6, (13, length)).astype(np.int32)
    for share in SHARES:
        listening = Listening()
        apart, fused = weight(share, listening), weight(share, SILENT)
        for p in (apart, fused):
            for position in share.microbatches(0, 0):
                part = slice(position.first_sample, position.first_sample + position.count)
                op(p, position, rows[part], columns[part], tokens[part])
        nodes = share.nodes
        assert not np.isnan(fused.grads[:nodes]).any()
        assert fused.grads[:nodes].tobytes() == apart.grads[:nodes].tobytes(), share
        merged += len(listening.merged_slots)
    assert merged > 100


@pytest.mark.parametrize("length", [32, 33])
def test_rule_9_in_blocks(length):
    best = _cpu.isa()
    _cpu.set_isa(EMULATED)
    try:
        test_rule_9_leaves_merged_by_the_kernel(of_matmul, length, BFLOAT16)
    finally:
        _cpu.set_isa(best)


def test_what_does_not_fit_a_stack_is_refused():
    rows, columns = random((6, 4)), random((6, 5))
    out, tokens = np.zeros((2, 4, 5), FLOAT32), np.zeros(6, np.int32)
    for leaves, merges, slot, accumulate in [
        ([0, 3, 6], [0], 0, False),
        ([0, 3, 6], [0, 2], 0, False),
        ([0, 3, 6], [1, 0], 0, False),
        ([0, 3, 6], [0, -1], 0, False),
        ([0, 2, 4, 6], [0, 0, 0], 0, False),
        ([0, 6], [0], 2, False),
        ([0, 6], [1], 2, True),
        ([0, 6], [0], -1, False),
    ]:
        with pytest.raises(ValueError, match="do not fit a stack of 2"):
            _cpu.matmul_backward_weight(rows, columns, leaves, merges, slot, accumulate, 0, out)
        with pytest.raises(ValueError, match="do not fit a stack of 2"):
            _cpu.embedding_backward(tokens, columns, 0, leaves, merges, slot, accumulate, None, out)
    with pytest.raises(ValueError, match=r"must be a float32 stack of \(4, 5\)"):
        _cpu.matmul_backward_weight(rows, columns, [0, 6], [0], 0, False, 0, out[:, :, :4].copy())
    with pytest.raises(ValueError, match="differ in length"):
        _cpu.matmul_backward_weight(rows, columns[:5], [0, 6], [0], 0, False, 0, out)
