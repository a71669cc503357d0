"""Philox against its published vectors, and numbers that depend on their global index alone."""

import math
from collections.abc import Iterator
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from kernel_bits import assert_cpu_bits
from kernel_checks import PATHS, strided

from plait import _cpu

bfloat16 = np.dtype(ml_dtypes.bfloat16)
best = _cpu.isa()
paths = PATHS[: PATHS.index(best) + 1]
MASK = 2**32 - 1


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    _cpu.set_isa(best)
    _cpu.set_threads(1)


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def block(low, high, key):
    """The words at 64-bit halves of a counter."""
    low, high, key = low % 2**64, high % 2**64, key % 2**64
    return philox((low & MASK, low >> 32, high & MASK, high >> 32), (key & MASK, key >> 32))


def test_the_reference_gives_the_published_vectors():
    """kat_vectors of Random123, philox4x32 with 10 rounds."""
    cases = [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([MASK] * 4, [MASK] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, words in cases:
        assert " ".join(f"{word:08x}" for word in philox(counter, key)) == words


def normal(n, seed=0, stream=0, first=0, mean=0.0, std=1.0, kernels=_cpu):
    out = np.full(n, 9, np.float32)
    kernels.random_normal(seed, stream, first, mean, std, out)
    return out


@pytest.mark.parametrize(
    ("seed", "stream", "first"),
    [(0, 0, 0), (1, 2, 3), (-5, 2**40 + 1, 2**34 + 6), (2**63 - 1, -1, 2**62)],
)
def test_normal_is_box_muller_of_philox_words(seed, stream, first):
    mean, std = 0.25, 1.5
    expected = []
    for index in range(first, first + 40):
        words = block(index // 4, stream, seed)
        u, v = words[0:2] if index % 4 < 2 else words[2:4]
        radius = math.sqrt(-2 * math.log((u + 0.5) / 2**32))
        angle = 2 * math.pi * v / 2**32
        expected.append(mean + std * radius * (math.sin(angle) if index % 2 else math.cos(angle)))
    np.testing.assert_allclose(
        normal(40, seed, stream, first, mean, std), expected, rtol=1.3e-7, atol=1e-9
    )


def test_normal_does_not_depend_on_where_it_is_cut():
    whole = normal(3000, 7, 5)
    np.testing.assert_array_equal(normal(3, 7, 5, first=5), whole[5:8])
    for isa in paths:
        _cpu.set_isa(isa)
        for threads in (1, 3):
            _cpu.set_threads(threads)
            cuts = [0, 1, 6, 255, 256, 700, 2047, 3000]
            parts = [normal(j - i, 7, 5, first=i) for i, j in pairwise(cuts)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)
            big = normal(100_001, 7, 5, first=11)
            np.testing.assert_array_equal(big[: 3000 - 11], whole[11:])
            np.testing.assert_array_equal(big[-100:], normal(100, 7, 5, first=11 + 100_001 - 100))
    assert normal(0).shape == (0,)


def test_normal_has_the_moments_of_a_normal():
    n = 400_000
    x = normal(n, 3).astype(np.float64)
    for power, moment in [(1, 0), (2, 1), (3, 0), (4, 3), (6, 15)]:
        spread = math.sqrt((math.prod(range(2 * power - 1, 0, -2)) - moment**2) / n)
        assert abs((x**power).mean() - moment) < 4 * spread
    assert abs((x[:-1] * x[1:]).mean()) < 4 / math.sqrt(n)
    assert 0.0026 < (np.abs(x) > 3).mean() < 0.0028
    y, z = normal(n, 4).astype(np.float64), normal(n, 3, 1).astype(np.float64)
    for other in (y, z):
        assert abs((x * other).mean()) < 4 / math.sqrt(n)


def test_normal_with_mean_and_std():
    np.testing.assert_allclose(normal(50, mean=2.0, std=0.5), 2 + 0.5 * normal(50), rtol=3e-7)
    np.testing.assert_array_equal(normal(50, mean=2.0, std=0.0), 2)


def dropped(x, p=0.5, seed=1, step=2, layer=3, sample=0, position=0, kernels=_cpu):
    out = np.full(x.shape, 9, x.dtype)
    kernels.dropout(x, p, seed, step, layer, sample, position, out)
    return out


@pytest.mark.parametrize("isa", paths)
@pytest.mark.parametrize("dtype", [np.float32, bfloat16])
def test_dropout_keeps_by_the_word_of_the_element(isa, dtype):
    _cpu.set_isa(isa)
    seed, step, layer, sample, position, p = 11, 2**33, -4, 2**40, 3, np.float32(0.3)
    x = np.random.default_rng(0).standard_normal((2, 5, 7)).astype(dtype)
    words = block(step, layer, seed)
    key = words[0] + (words[1] << 32)
    scale = np.float32(1 / (1 - float(p)))
    expected = np.zeros_like(x)
    for b in range(2):
        for s in range(5):
            for c in range(7):
                element = (position + s) * 7 + c
                word = block(element // 4, sample + b, key)[element % 4]
                if word >= int(float(p) * 2**32):
                    expected[b, s, c] = np.float32(x[b, s, c]) * scale
    np.testing.assert_array_equal(dropped(x, p, seed, step, layer, sample, position), expected)


def test_dropout_does_not_depend_on_where_it_is_cut():
    for channels in (1, 3, 64, 301):
        x = np.random.default_rng(0).standard_normal((6, 40, channels)).astype(np.float32)
        whole = dropped(x)
        for isa in paths:
            _cpu.set_isa(isa)
            for threads in (1, 3):
                _cpu.set_threads(threads)
                np.testing.assert_array_equal(dropped(x), whole)
                part = dropped(x[2:5, 7:31], sample=2, position=7)
                np.testing.assert_array_equal(part, whole[2:5, 7:31])
                wide = np.zeros((6, 40, channels + 5), np.float32)
                wide[..., :channels] = x
                np.testing.assert_array_equal(dropped(wide[..., :channels]), whole)


def test_dropout_rate_scale_and_keys():
    x = np.ones((10, 100, 200), np.float32)
    for p in (0.0, 0.1, 0.5, 0.9):
        out = dropped(x, p)
        kept = out != 0
        assert abs(kept.mean() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / x.size) + 1e-12
        np.testing.assert_array_equal(out[kept], np.float32(1 / (1 - float(np.float32(p)))))
    base = dropped(x)
    others = [{"seed": 2}, {"step": 3}, {"layer": 4}, {"sample": 10}, {"position": 100}]
    for other in others:
        agree = (dropped(x, **other) == base).mean()
        assert abs(agree - 0.5) < 4 * 0.5 / math.sqrt(x.size)
    x[:] = np.nan
    assert (dropped(x)[base == 0] == 0).all()
    for shape in [(0, 2, 3), (2, 0, 3), (2, 3, 0)]:
        assert dropped(np.zeros(shape, np.float32)).shape == shape


@pytest.mark.cuda
@pytest.mark.parametrize("first", [0, 3, 2**40 + 2, 2**62])
@pytest.mark.parametrize("n", [0, 1, 4, 5, 2601])
def test_normal_has_the_cpus_bits(n, first):
    assert_cpu_bits(lambda kernels: [normal(n, -5, 2**40, first, 0.25, 1.5, kernels)])


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [np.float32, bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 5, 7), (3, 4, 16), (2, 3, 24), (1, 1, 1), (0, 2, 3), (2, 37, 64)]
)
def test_dropout_has_the_cpus_bits(shape, dtype):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)

    def call(kernels):
        key = {"seed": 2**40, "step": -1, "layer": 5, "sample": 2**33, "position": 3}
        again = [dropped(v, 0.3, **key, kernels=kernels) for v in (x, strided(x), x[:, 1:])]
        return *again, dropped(x[1:], 0.3, sample=1, kernels=kernels)

    assert_cpu_bits(call)


def test_errors_name_the_values(kernels):
    x = np.zeros((2, 3, 4), np.float32)
    for p in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"probability is .* must be in \[0, 1\)"):
            dropped(x, p, kernels=kernels)
    with pytest.raises(ValueError, match=r"\(3, 4\) float32"):
        dropped(x[0], kernels=kernels)
    with pytest.raises(ValueError, match="first_index is -1"):
        normal(3, first=-1, kernels=kernels)
    with pytest.raises(ValueError, match="element type is bfloat16, expected float32"):
        kernels.random_normal(0, 0, 0, 0.0, 1.0, np.zeros(3, bfloat16))
