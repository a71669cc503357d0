"""Fingerprints: sums that any cut of an array adds up to, and that any other bits change."""

from itertools import pairwise

import numpy as np
import pytest
from kernel_bits import assert_cpu_bits
from kernel_checks import STORAGE, assert_same_bits, random

from plait import _cpu


@pytest.mark.parametrize("dtype", STORAGE)
def test_pieces_add_up(kernels, dtype):
    x = random((70_001,), dtype)

    def of(*cuts):
        parts = (kernels.fingerprint(x[a:b], 5 + a) for a, b in pairwise(cuts))
        return sum(parts) % 2**64

    whole = of(0, len(x))
    assert of(0, 1, 1, 33, 70_000, len(x)) == whole
    if kernels is _cpu:
        assert_same_bits(lambda: [np.array([of(0, 20_000, len(x))], np.uint64)])
    changed = x.copy()
    changed.view(np.uint16)[7] ^= 1
    assert kernels.fingerprint(changed, 5) != whole
    swapped = x.copy()
    swapped[[10, 11]] = swapped[[11, 10]]
    assert kernels.fingerprint(swapped, 5) != whole
    assert kernels.fingerprint(x, 6) != whole


@pytest.mark.parametrize("dtype", STORAGE)
def test_weighted_bits_are_a_sum_of_products(kernels, dtype):
    x = random((37, 41), dtype)
    rows, columns = (
        np.random.default_rng(i).integers(0, 2**63, n).astype(np.uint64)
        for i, n in ((1, 37), (2, 41))
    )
    whole = kernels.weighted_bits(x, rows, columns)
    parts = [
        kernels.weighted_bits(x[a:b, c:d], rows[a:b], columns[c:d])
        for a, b in ((0, 5), (5, 5), (5, 37))
        for c, d in ((0, 40), (40, 41), (41, 41))
    ]
    assert sum(parts) % 2**64 == whole
    one = kernels.weighted_bits(x[3:4, 7:8], np.ones(1, np.uint64), np.ones(1, np.uint64))
    scaled = kernels.weighted_bits(x[3:4, 7:8], rows[3:4], columns[7:8])
    assert scaled == one * int(rows[3]) * int(columns[7]) % 2**64
    if kernels is _cpu:
        assert_same_bits(lambda: [np.array([kernels.weighted_bits(x, rows, columns)], np.uint64)])
    x.view(np.uint16)[36, -1] ^= 1
    assert kernels.weighted_bits(x, rows, columns) != whole


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("count", [0, 1, 37, 2500])
def test_the_cpus_sums(count, dtype):
    x = random((count,), dtype)
    rows, columns = np.arange(3, dtype=np.uint64) + 2**60, np.arange(count, dtype=np.uint64) + 2**61
    table = random((3, count + 5), dtype)[:, :count]

    def call(kernels):
        sums = kernels.fingerprint(x, -7), kernels.weighted_bits(table, rows, columns)
        return [np.array(sums, np.uint64)]

    assert_cpu_bits(call)


def test_errors(kernels):
    with pytest.raises(ValueError, match=r"contiguous .* float32"):
        kernels.fingerprint(np.zeros(10, np.float32)[::2], 0)
    with pytest.raises(ValueError, match="int32"):
        kernels.fingerprint(np.zeros(10, np.int32), 0)
    ones = np.ones(10, np.uint64)
    with pytest.raises(ValueError, match="for each row and column"):
        kernels.weighted_bits(np.zeros((10, 9), np.float32), ones, ones)
    with pytest.raises(ValueError, match="2 or 4 bytes"):
        kernels.weighted_bits(np.zeros((10, 10), np.uint8), ones, ones)
