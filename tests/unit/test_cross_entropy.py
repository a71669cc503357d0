"""Cross-entropy over shards of the vocabulary against float64 on the whole of it."""

import kernel_backends
import numpy as np
import pytest
from kernel_backends import in_every_order
from kernel_bits import assert_cpu_bits
from kernel_checks import STORAGE, assert_near, assert_same_bits, bits, random, wide

from plait import _cpu
from plait.comm.tree import merges

SCALE = 0.25


def sharded(logits, targets, vocabulary, shards, kernels=_cpu):
    """losses (R) and grad_logits (R, V) by way of `shards` equal shards."""
    rows, width = len(logits), logits.shape[1] // shards
    parts = np.empty((shards, 2, rows), np.float32)
    picked = np.full(rows, 123, np.float32)
    pieces = [logits[:, i * width : (i + 1) * width].copy() for i in range(shards)]
    for i, piece in enumerate(pieces):
        kernels.cross_entropy_statistics(
            piece, targets, i * width, vocabulary, parts[i, 0], parts[i, 1], picked
        )
    merged = np.empty((2, rows), np.float32)
    tree = merges(shards, [(i, i + 1) for i in range(shards)])
    kernels.cross_entropy_merge(parts, tree, merged)
    losses = np.empty(rows, np.float32)
    kernels.cross_entropy_loss(merged[0], merged[1], picked, targets, losses)
    grads = []
    for i, piece in enumerate(pieces):
        kernels.cross_entropy_backward(
            piece, targets, merged[0], merged[1], i * width, vocabulary, SCALE, piece
        )
        grads.append(piece)
    return losses, np.concatenate(grads, 1)


def reference(logits, targets, vocabulary):
    x = wide(logits)[:, :vocabulary]
    rows, used = np.arange(len(x)), targets >= 0
    peak = x.max(1, keepdims=True)
    e = np.exp(x - peak)
    losses = np.log(e.sum(1)) + peak[:, 0] - x[rows, targets]
    grad = np.zeros(logits.shape)
    grad[:, :vocabulary] = e / e.sum(1, keepdims=True)
    grad[rows[used], targets[used]] -= 1
    return np.where(used, losses, 0), grad * used[:, None] * SCALE


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize(
    ("rows", "columns", "vocabulary", "shards"),
    [
        (1, 1, 1, 1),
        (0, 32, 32, 2),
        (7, 96, 90, 3),
        (5, 1024, 1000, 4),
        (3, 160, 31, 5),
        (20, 64, 64, 1),
    ],
)
def test_losses_and_gradients(kernels, rows, columns, vocabulary, shards, dtype):
    """With shards that are all padding, and with padding that holds huge values."""
    logits = random((rows, columns), dtype, scale=4)
    logits[:, vocabulary:] = 1e30
    targets = np.random.default_rng(1).integers(0, vocabulary, rows).astype(np.int32)
    targets[1::3] = -1
    losses, grad = sharded(logits, targets, vocabulary, shards, kernels)
    expected_losses, expected_grad = reference(logits, targets, vocabulary)
    assert_near(losses, expected_losses, 8, 8)
    assert_near(grad, expected_grad, 4, SCALE)
    assert not np.any(wide(grad)[:, vocabulary:])
    assert not np.any(wide(grad)[targets < 0])


def test_a_shard_of_padding_is_neutral(kernels):
    logits, targets = np.full((4, 8), np.nan, np.float32), np.zeros(4, np.int32)
    peak, total, picked = (np.full(4, 5, np.float32) for _ in range(3))
    kernels.cross_entropy_statistics(logits, targets, 64, 60, peak, total, picked)
    assert np.all(peak == -np.inf)
    assert np.all(total == 0)
    assert np.all(picked == 5)


def test_large_logits(kernels):
    logits = (
        random((6, 64), scale=1.0) + np.float32(1e4) * np.arange(-3, 3, dtype=np.float32)[:, None]
    )
    logits[:, 5] -= 5000  # far below the others: exactly no probability
    targets = np.full(6, 5, np.int32)
    losses, grad = sharded(logits, targets, 64, 4, kernels)
    expected_losses, expected_grad = reference(logits, targets, 64)
    assert_near(losses, expected_losses, 4, 3e4)
    assert_near(grad, expected_grad, 4, SCALE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 5, 40, 63])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_nan_and_infinity_show_in_the_loss(kernels, bad, column, shards):
    logits, targets = random((3, 64)), np.array([5, 5, -1], np.int32)
    logits[1, column] = bad
    losses, grad = sharded(logits, targets, 64, shards, kernels)
    assert np.isnan(losses[1])
    assert np.isnan(grad[1]).any()
    assert np.all(np.isfinite(losses[[0, 2]]))
    assert np.all(np.isfinite(grad[[0, 2]]))


def test_minus_infinity_is_no_probability(kernels):
    logits, targets = random((2, 64)), np.array([5, 40], np.int32)
    logits[:, 32:39] = -np.inf
    logits[1, :32] = -np.inf  # a whole shard
    losses, grad = sharded(logits, targets, 64, 2, kernels)
    expected_losses, expected_grad = reference(logits, targets, 64)
    assert_near(losses, expected_losses, 8, 8)
    assert_near(grad, expected_grad, 4, SCALE)


def test_merge_follows_the_tree(kernels):
    """Merging nodes of a tree first and the rest later gives the bits of merging all at once."""
    parts = np.abs(random((7, 2, 33)))
    whole = np.empty((2, 33), np.float32)
    kernels.cross_entropy_merge(parts, merges(7, [(i, i + 1) for i in range(7)]), whole)
    left = np.empty((2, 33), np.float32)
    kernels.cross_entropy_merge(parts[:4], merges(4, [(i, i + 1) for i in range(4)]), left)
    rest = np.concatenate([left[None], parts[4:]])
    again = np.empty((2, 33), np.float32)
    kernels.cross_entropy_merge(rest, merges(7, [(0, 4), (4, 5), (5, 6), (6, 7)]), again)
    assert bits(again) == bits(whole)
    chain = np.empty((2, 33), np.float32)
    kernels.cross_entropy_merge(parts, [0, 1, 1, 1, 1, 1, 1], chain)
    assert bits(chain) != bits(whole)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize(("columns", "vocabulary"), [(32, 32), (40, 37), (75, 75), (4200, 4150)])
def test_gradients_and_losses_have_the_cpus_bits(columns, vocabulary, skip, dtype):
    """Packs and single columns, rows that more than one block shares, in place."""
    both = random((4, columns + skip), dtype, scale=4)
    targets = np.array([0, vocabulary - 1, -1, 5], np.int32)
    peak, total = np.empty(4, np.float32), np.empty(4, np.float32)
    picked = np.zeros(4, np.float32)
    _cpu.cross_entropy_statistics(both[:, skip:], targets, 0, vocabulary, peak, total, picked)

    def call(kernels):
        grad, losses = both[:, skip:].copy(), np.empty(4, np.float32)
        kernels.cross_entropy_backward(grad, targets, peak, total, 0, vocabulary, SCALE, grad)
        kernels.cross_entropy_loss(peak, total, picked, targets, losses)
        return grad, losses

    assert_cpu_bits(call)


@pytest.mark.cuda
@pytest.mark.parametrize("parts", [1, 2, 3, 8, 21])
def test_merges_have_the_cpus_bits(parts):
    sums = random((parts, 2, 300))
    sums[:, 1] **= 2
    sums[parts // 2, :, 3] = -np.inf, 0

    def call(kernels):
        out = np.empty((2, 300), np.float32)
        tree = merges(parts, [(i, i + 1) for i in range(parts)])
        kernels.cross_entropy_merge(sums, tree, out)
        return [out]

    assert_cpu_bits(call)


@pytest.mark.parametrize("dtype", STORAGE)
def test_statistics_of_a_view(kernels, dtype):
    """Strided rows, aligned or not, and any order of threads: the bits of a copy."""
    holder = random((3, 2400), dtype, scale=3)
    targets = np.array([7, -1, 2299], np.int32)

    def statistics(logits):
        found = [np.zeros(3, np.float32) for _ in range(3)]
        kernels.cross_entropy_statistics(logits, targets, 0, 2300, *found)
        return [bits(x) for x in found]

    for skip in (0, 1, 8, 9):
        view = holder[:, skip : skip + 2304]
        expected = statistics(view.copy())
        for _ in in_every_order(kernels):
            assert statistics(view) == expected


@pytest.mark.cuda
def test_a_target_outside_is_told_when_faults_are_asked_for():
    cuda = kernel_backends.kernels("cuda")
    cuda.check_faults()
    logits = random((3, 8))
    found = [np.zeros(3, np.float32) for _ in range(3)]
    cuda.cross_entropy_statistics(logits, np.array([3, 8, 0], np.int32), 0, 8, *found)
    with pytest.raises(ValueError, match="a target is at or beyond the vocabulary"):
        cuda.check_faults()
    cuda.check_faults()


@pytest.mark.parametrize("dtype", STORAGE)
def test_bits(dtype):
    logits, targets = random((41, 600), dtype, scale=5), (np.arange(41) * 13 % 580).astype(np.int32)
    assert_same_bits(lambda: sharded(logits, targets, 580, 3))


def test_a_row_depends_on_no_other_row(kernels):
    logits, targets = random((9, 100)), np.arange(9, dtype=np.int32)
    losses, grad = sharded(logits, targets, 100, 1, kernels)
    for row in range(9):
        loss, row_grad = sharded(logits[row : row + 1], targets[row : row + 1], 100, 1, kernels)
        assert bits(loss) == bits(losses[row])
        assert bits(row_grad) == bits(grad[row])


def test_errors(kernels):
    x, t = np.zeros((2, 8), np.float32), np.array([3, 8], np.int32)
    if kernels is _cpu:
        with pytest.raises(ValueError, match=r"targets\[1\] is 8, beyond the vocabulary of 8"):
            sharded(x, t, 8, 1)
    parts, out = np.zeros((2, 2, 3), np.float32), np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="leave 2 parts"):
        kernels.cross_entropy_merge(parts, [0, 0], out)
    with pytest.raises(ValueError, match="merge counts leave"):
        kernels.cross_entropy_merge(parts, [1, 0], out)
