"""Rotary positions against float64, up to position 1e6; the inverse undoes the rotation."""

import numpy as np
import pytest
from kernel_checks import STORAGE, assert_near, assert_same_bits, bits, random, strided, wide

from plait import _cpu


def reference(x, base, first, inverse=False):
    half = x.shape[-1] // 2
    angle = (first + np.arange(x.shape[1]))[:, None] * base ** (-np.arange(half) / half)
    c, s = np.cos(angle)[None, :, None], np.sin(angle)[None, :, None] * (-1 if inverse else 1)
    a, b = wide(x)[..., :half], wide(x)[..., half:]
    return np.concatenate([a * c - b * s, b * c + a * s], -1)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2), (2, 5, 3, 64), (2, 7, 2, 6), (0, 3, 1, 8), (1, 40, 2, 100)]
)
@pytest.mark.parametrize("inverse", [False, True])
def test_rope(shape, dtype, inverse):
    x = random(shape, dtype)
    out = np.empty_like(x)
    _cpu.rope(x, 10000.0, 3, inverse, out)
    assert_near(out, reference(x, 10000.0, 3, inverse), 12, 1)


@pytest.mark.parametrize("base", [1.0, 10000.0, 500000.0, 1e9])
@pytest.mark.parametrize("first", [0, 12345, 999_900, 2**31])
def test_angles_are_accurate_at_large_positions(base, first):
    x = np.zeros((1, 100, 1, 128), np.float32)
    x[..., :64] = 1  # so that out is cosine and sine
    out = np.empty_like(x)
    _cpu.rope(x, base, first, False, out)
    assert np.abs(out - reference(x, base, first)).max() < (1e-7 if first < 2**30 else 2e-6)


def test_in_place_on_views_and_back():
    qkv = random((2, 9, 3, 4, 32))
    before = qkv.copy()
    q = qkv[:, :, 0]
    expected = np.empty((2, 9, 4, 32), np.float32)
    _cpu.rope(q.copy(), 10000.0, 0, False, expected)
    _cpu.rope(q, 10000.0, 0, False, q)
    assert bits(q) == bits(expected)
    assert np.array_equal(qkv[:, :, 1:], before[:, :, 1:])
    _cpu.rope(q, 10000.0, 0, True, q)
    assert_near(q, wide(before[:, :, 0]), 12, 1)


def test_a_position_depends_on_no_other():
    x = random((2, 30, 2, 64))
    whole = np.empty_like(x)
    _cpu.rope(x, 10000.0, 100, False, whole)
    part = np.empty_like(x[:, 11:15])
    _cpu.rope(x[:, 11:15], 10000.0, 111, False, part)
    assert bits(part) == bits(whole[:, 11:15])


@pytest.mark.parametrize("dtype", STORAGE)
def test_bits(dtype):
    x = strided(random((2, 64, 3, 72), dtype))

    def call():
        out = np.empty(x.shape, x.dtype)
        _cpu.rope(x, 10000.0, 77, False, out)
        return [out]

    assert_same_bits(call)


def test_errors():
    x = np.zeros((1, 1, 1, 3), np.float32)
    with pytest.raises(ValueError, match="head size 3 is odd"):
        _cpu.rope(x, 10000.0, 0, False, x)
    x = np.zeros((1, 1, 1, 4), np.float32)
    with pytest.raises(ValueError, match=r"base is 0\.5"):
        _cpu.rope(x, 0.5, 0, False, x)
