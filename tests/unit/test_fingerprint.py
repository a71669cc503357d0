"""Fingerprints: sums that any cut of an array adds up to, and that any other bits change."""

from itertools import pairwise

import numpy as np
import pytest
from kernel_checks import STORAGE, assert_same_bits, random

from plait import _cpu


@pytest.mark.parametrize("dtype", STORAGE)
def test_pieces_add_up(dtype):
    x = random((70_001,), dtype)

    def of(*cuts):
        parts = (_cpu.fingerprint(x[a:b], 5 + a) for a, b in pairwise(cuts))
        return sum(parts) % 2**64

    whole = of(0, len(x))
    assert of(0, 1, 1, 33, 70_000, len(x)) == whole
    assert_same_bits(lambda: [np.array([of(0, 20_000, len(x))], np.uint64)])
    changed = x.copy()
    changed.view(np.uint16)[7] ^= 1
    assert _cpu.fingerprint(changed, 5) != whole
    swapped = x.copy()
    swapped[[10, 11]] = swapped[[11, 10]]
    assert _cpu.fingerprint(swapped, 5) != whole
    assert _cpu.fingerprint(x, 6) != whole


def test_errors():
    with pytest.raises(ValueError, match=r"contiguous .* float32"):
        _cpu.fingerprint(np.zeros(10, np.float32)[::2], 0)
    with pytest.raises(ValueError, match="int32"):
        _cpu.fingerprint(np.zeros(10, np.int32), 0)
