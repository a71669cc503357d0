"""Rotary positions against float64, up to position 1e6; the inverse undoes the rotation."""

import numpy as np
import pytest
from kernel_bits import assert_cpu_bits
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
def test_rope(kernels, shape, dtype, inverse):
    x = random(shape, dtype)
    out = np.empty_like(x)
    kernels.rope(x, 10000.0, 3, inverse, out)
    assert_near(out, reference(x, 10000.0, 3, inverse), 12, 1)


@pytest.mark.parametrize("base", [1.0, 10000.0, 500000.0, 1e9])
@pytest.mark.parametrize("first", [0, 12345, 999_900, 2**31])
def test_angles_are_accurate_at_large_positions(kernels, base, first):
    x = np.zeros((1, 100, 1, 128), np.float32)
    x[..., :64] = 1  # so that out is cosine and sine
    out = np.empty_like(x)
    kernels.rope(x, base, first, False, out)
    assert np.abs(out - reference(x, base, first)).max() < (1e-7 if first < 2**30 else 2e-6)


def test_in_place_on_views_and_back(kernels):
    qkv = random((2, 9, 3, 4, 32))
    before = qkv.copy()
    q = qkv[:, :, 0]
    expected = np.empty((2, 9, 4, 32), np.float32)
    kernels.rope(q.copy(), 10000.0, 0, False, expected)
    kernels.rope(q, 10000.0, 0, False, q)
    assert bits(q) == bits(expected)
    assert np.array_equal(qkv[:, :, 1:], before[:, :, 1:])
    kernels.rope(q, 10000.0, 0, True, q)
    assert_near(q, wide(before[:, :, 0]), 12, 1)


def test_a_position_depends_on_no_other(kernels):
    x = random((2, 30, 2, 64))
    whole = np.empty_like(x)
    kernels.rope(x, 10000.0, 100, False, whole)
    part = np.empty_like(x[:, 11:15])
    kernels.rope(x[:, 11:15], 10000.0, 111, False, part)
    assert bits(part) == bits(whole[:, 11:15])


@pytest.mark.parametrize("dtype", STORAGE)
def test_bits(dtype):
    x = strided(random((2, 64, 3, 72), dtype))

    def call():
        out = np.empty(x.shape, x.dtype)
        _cpu.rope(x, 10000.0, 77, False, out)
        return [out]

    assert_same_bits(call)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("shape", [(2, 9, 3, 72), (1, 5, 2, 6), (2, 3, 1, 272), (1, 1, 1, 64)])
def test_the_cpus_bits(shape, dtype):
    """Packs of 16 bytes and single elements, views, more pairs than one kernel takes."""
    x = random(shape, dtype)

    def call(kernels):
        out = [np.empty_like(x) for _ in range(2)]
        kernels.rope(x, 10000.0, 77, False, out[0])
        kernels.rope(strided(x), 10000.0, 2**33, True, out[1])
        return out

    assert_cpu_bits(call)


def test_errors(kernels):
    x = np.zeros((1, 1, 1, 3), np.float32)
    with pytest.raises(ValueError, match="head size 3 is odd"):
        kernels.rope(x, 10000.0, 0, False, x)
    x = np.zeros((1, 1, 1, 4), np.float32)
    with pytest.raises(ValueError, match=r"base is 0\.5"):
        kernels.rope(x, 0.5, 0, False, x)
