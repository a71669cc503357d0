"""matmul against float64, and the bits its contract fixes: chains, leaves, threads, paths."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from kernel_checks import AMX_PATHS, EMULATED, VECTOR_PATHS
from matmul_checks import nearest_float32, run, same_bits, strided, tree_sum

from plait import _cpu

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)
best = _cpu.isa()
paths = VECTOR_PATHS  # AMX adds bfloat16 in blocks: test_matmul_blocks.py


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    _cpu.set_isa(paths[-1])
    yield
    _cpu.set_isa(best)
    _cpu.set_threads(1)


def randoms(*shape, dtype=float32, seed=0):
    x = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return x.astype(np.float32).astype(dtype)


SHAPES = [
    (1, 1, 1),
    (2, 3, 5),
    (1, 300, 70),
    (70, 300, 1),
    (13, 31, 33),
    (14, 256, 32),
    (15, 257, 31),
    (29, 600, 65),
    (185, 40, 100),
    (37, 1030, 37),
]


@pytest.mark.parametrize("isa", [*paths, EMULATED])
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_close_to_float64(isa, ta, tb):
    _cpu.set_isa(isa)
    for m, k, n in SHAPES:
        for dtype, out_dtype in [(float32, float32), (bfloat16, float32), (bfloat16, bfloat16)]:
            a, b = randoms(m, k, dtype=dtype), randoms(k, n, dtype=dtype, seed=1)
            exact = a.astype(np.float64) @ b.astype(np.float64)
            scale = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
            a, b = (
                (np.ascontiguousarray(a.T) if ta else a),
                (np.ascontiguousarray(b.T) if tb else b),
            )
            out = run(strided(a, 3), strided(b, 5), ta, tb, dtype=out_dtype).astype(np.float64)
            bound = k * 2.0**-24 * scale + (2.0**-8 * np.abs(exact) if out_dtype == bfloat16 else 0)
            assert (np.abs(out - exact) <= bound).all(), (m, k, n, dtype, out_dtype)


@pytest.mark.parametrize("isa", paths)
def test_an_element_is_one_chain_of_fused_multiply_adds(isa):
    _cpu.set_isa(isa)
    a, b = randoms(3, 40), randoms(40, 5, seed=1)
    a[0] *= np.float32(1e-20)  # products below the smallest normal float32
    b[:, 0] *= np.float32(1e-19)
    a[1, 7:9], b[7:9, 1] = [1, -1], 3  # cancellation
    out = run(a, b)
    for i in range(3):
        for j in range(5):
            chain = np.float32(0)
            for k in range(40):
                term = Fraction(float(a[i, k])) * Fraction(float(b[k, j]))
                chain = nearest_float32(term + Fraction(float(chain)))
            assert out[i, j] == chain


@pytest.mark.parametrize("isa", paths)
def test_a_bit_far_below_breaks_a_tie(isa):
    """1 + 2^-24 lies halfway between two float32; 2^-70 more, lost in double, decides."""
    _cpu.set_isa(isa)
    high, low = 2.0**23 + 2**12 + 1, 2.0**23 - 2**12 + 1  # their product is 2^46 + 1
    for sign in (1, -1):
        a = np.array([[sign, sign * high]], np.float32)
        b = np.array([[1] * 5, [low * 2.0**-70] * 5], np.float32)
        assert (run(a, b) == sign * (1 + 2.0**-23)).all()
        b[0] = 1 + 2.0**-23  # here the tie alone would go up, and a little less must go down
        b[1] = (2.0**23 - 1) * 2.0**-70
        a[0, 1] = sign * (2.0**23 + 1)
        assert (run(a, b) == sign * (1 + 2.0**-23)).all()


def flushed(x):
    return x if abs(x) >= 2.0**-126 else np.copysign(np.float32(0), x)


def chain_of_pairs(a, b):
    total = np.float32(0)
    for k in range(0, len(a), 2):
        for i in (k + 1, k):
            if i < len(a):
                term = Fraction(float(flushed(a[i]))) * Fraction(float(flushed(b[i])))
                total = flushed(nearest_float32(term + Fraction(float(total))))
    return total


@pytest.mark.parametrize("isa", paths)
@pytest.mark.parametrize("scale", [1.0, 1e-19, 3e-21, 1e-39])
def test_bfloat16_is_a_chain_of_pairs(isa, scale):
    """The second of a pair first; below the smallest normal float32 there is nothing."""
    _cpu.set_isa(isa)
    a, b = randoms(3, 41, dtype=bfloat16), randoms(41, 5, dtype=bfloat16, seed=1)
    spread = 2.0 ** np.random.default_rng(2).integers(-12, 12, a.shape)  # sums must be rounded
    a = (a.astype(float32) * spread * scale).astype(bfloat16)
    b = (b.astype(float32) * (1 if scale < 1e-30 else scale)).astype(bfloat16)
    out = run(a, b)
    for i in range(3):
        for j in range(5):
            assert out[i, j] == chain_of_pairs(a[i], b[:, j])
    assert (out != run(a.astype(float32), b.astype(float32))).any()


@pytest.mark.parametrize("isa", paths)
@pytest.mark.parametrize("period", [1, 7, 8, 9, 16, 33, 40, 1333])
def test_samples_do_not_share_pairs(isa, period):
    """However many samples a call has, their sum is one chain."""
    _cpu.set_isa(isa)
    a, b = randoms(9 * period, 17, dtype=bfloat16), randoms(9 * period, 35, dtype=bfloat16, seed=1)
    whole = run(a, b, True, period=period)
    for at_once in (1, 2, 5):
        out = np.zeros_like(whole)
        for i in range(0, 9 * period, at_once * period):
            rows = slice(i, i + at_once * period)
            run(a[rows], b[rows], True, out=out, accumulate=True, period=period)
        same_bits(out, whole)
    assert (whole != run(a, b, True)).any() == (period % 2 == 1)
    if period in (1, 7):
        same_bits(whole, run(a.astype(float32), b.astype(float32), True))


@pytest.mark.parametrize("dtype", [float32, bfloat16])
def test_accumulate_continues_the_chain(dtype):
    for m, k1, k2, n in [(3, 1, 1, 2), (20, 256, 256, 40), (33, 100, 477, 50), (15, 0, 5, 3)]:
        a, b = randoms(m, k1 + k2, dtype=dtype), randoms(k1 + k2, n, dtype=dtype, seed=1)
        whole = run(a, b)
        parts = strided(run(a[:, :k1], b[:k1]), 4)
        run(a[:, k1:], b[k1:], out=parts, accumulate=True)
        same_bits(parts, whole)
        if k1 > 1:
            added = run(a[:, :k1], b[:k1]) + run(a[:, k1:], b[k1:])
            assert (added != whole).any()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 8, 13])
def test_leaves_are_merged_by_the_tree(count):
    for m, k, n in [(5, 4, 3), (31, 700, 45)]:
        a, b, bias = randoms(m, k), randoms(k, n, seed=1), randoms(n, seed=2)
        leaves = [i * k // count for i in range(count + 1)]
        expected = tree_sum([run(a[:, i:j], b[i:j]) for i, j in pairwise(leaves)])
        same_bits(run(a, b, leaves=leaves), expected)
        same_bits(run(a, b, leaves=leaves, bias=bias), expected + bias)
        short_a, short_b = a.astype(bfloat16), b.astype(bfloat16)
        exact = run(short_a, short_b, leaves=leaves, bias=bias)
        short = run(short_a, short_b, leaves=leaves, bias=bias, dtype=bfloat16)
        same_bits(short, exact.astype(bfloat16))


def test_bfloat16_out_is_rounded_once():
    a, b = randoms(40, 1500, dtype=bfloat16), randoms(1500, 70, dtype=bfloat16, seed=1)
    for bias in [None, randoms(70, dtype=bfloat16), randoms(70)]:
        exact = run(a, b, bias=bias)
        same_bits(run(a, b, bias=bias, dtype=bfloat16), exact.astype(bfloat16))
    whole = run(a, b)
    same_bits(
        run(a, b, bias=randoms(70, dtype=bfloat16)),
        whole + randoms(70, dtype=bfloat16).astype(float32),
    )


def test_bits_depend_on_neither_threads_nor_path_nor_transposes():
    for m, k, n in [(1, 700, 1), (130, 300, 200), (1100, 60, 40), (40, 60, 1100), (3, 30000, 9)]:
        for dtype in (float32, bfloat16):
            a, b = randoms(m, k, dtype=dtype), randoms(k, n, dtype=dtype, seed=1)
            leaves = [0, k // 3, k // 2, k]
            expected = run(a, b, leaves=leaves)
            for isa in paths:
                _cpu.set_isa(isa)
                for threads in (1, 2, 3):
                    _cpu.set_threads(threads)
                    same_bits(run(a, b, leaves=leaves), expected)
            at, bt = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
            same_bits(run(at, b, True, False, leaves=leaves), expected)
            same_bits(run(a, bt, False, True, leaves=leaves), expected)
            same_bits(run(at, bt, True, True, leaves=leaves), expected)


def test_rows_and_columns_do_not_touch_each_other():
    a, b = randoms(50, 90), randoms(90, 75, seed=1)
    whole = run(a, b)
    same_bits(run(a[17:18], b), whole[17:18])
    same_bits(run(a, b[:, 40:41].copy()), whole[:, 40:41])
    out = np.full((50, 90), 5, np.float32)
    run(a, b, out=out[:, 10:85])
    same_bits(out[:, 10:85], whole)
    assert (out[:, :10] == 5).all()
    assert (out[:, 85:] == 5).all()


@pytest.mark.parametrize("isa", [*paths, *AMX_PATHS])
@pytest.mark.parametrize("dtype", [float32, bfloat16])
def test_nan_and_infinity_reach_their_row_and_column_only(isa, dtype):
    _cpu.set_isa(isa)
    a, b = randoms(30, 65, dtype=dtype), randoms(65, 40, dtype=dtype, seed=1)
    a[3, 2], b[64, 39], a[7, 0] = np.nan, np.nan, np.inf
    b[0] = 1
    out = run(a, b)
    bad = np.isnan(out)
    assert bad[3].all()
    assert bad[:, 39].all()
    bad[3] = bad[:, 39] = False
    assert not bad.any()
    assert (out[7, :39] == np.inf).all()
    run(a, b, out=out, accumulate=True)
    assert np.isnan(out[3]).all()
    huge = np.full((2, 3), 3e38, np.float32)
    np.testing.assert_array_equal(run(huge, huge, False, True), np.inf)


@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 4), (3, 3, 0), (0, 0, 0), (3, 0, 4)])
def test_empty_sizes(m, k, n):
    a, b, bias = randoms(m, k), randoms(k, n), randoms(n)
    same_bits(run(a, b), np.zeros((m, n), np.float32))
    same_bits(run(a, b, bias=bias, leaves=[0, 0, k]), np.zeros((m, n), np.float32) + bias)
    kept = randoms(m, n)
    run(a, b, out=kept, accumulate=True)
    if k == 0:
        same_bits(kept, randoms(m, n))
    run(a, b, leaves=[0] if k == 0 else None)


def test_repeated_rows_may_have_stride_zero():
    row = randoms(1, 20)
    a, b = np.broadcast_to(row, (6, 20)), randoms(20, 9)
    same_bits(run(a, b), np.repeat(run(row, b), 6, axis=0))


def test_errors_name_both_shapes():
    a, b, out = randoms(2, 3), randoms(4, 5), randoms(2, 5)
    with pytest.raises(ValueError, match=r"\(2, 3\) float32.*\(4, 5\) float32"):
        _cpu.matmul(a, b, False, False, [0, 3], False, 0, None, out)
    with pytest.raises(ValueError, match=r"\(2, 5\) float32.*\(2, 4\)"):
        _cpu.matmul(a, randoms(3, 4), False, False, [0, 3], False, 0, None, out)
    b = randoms(3, 5)
    for leaves in ([0, 2], [1, 3], [0, 2, 1, 3], []):
        with pytest.raises(ValueError, match="leaves must ascend from 0 to the inner size 3"):
            _cpu.matmul(a, b, False, False, leaves, False, 0, None, out)
    with pytest.raises(ValueError, match="single leaf"):
        _cpu.matmul(a, b, False, False, [0, 2, 3], True, 0, None, out)
    short = a.astype(bfloat16), b.astype(bfloat16), out.astype(bfloat16)
    with pytest.raises(ValueError, match="single leaf"):
        _cpu.matmul(short[0], short[1], False, False, [0, 3], True, 0, None, short[2])
    with pytest.raises(ValueError, match=r"bias is \(4,\) float32"):
        _cpu.matmul(a, b, False, False, [0, 3], False, 0, randoms(4), out)
    with pytest.raises(ValueError, match="stride 1"):
        _cpu.matmul(a, randoms(5, 3).T, False, False, [0, 3], False, 0, None, out)
    with pytest.raises(ValueError, match="2 axes"):
        _cpu.matmul(a[0], b, False, False, [0, 3], False, 0, None, out)
    with pytest.raises(ValueError, match="must be float32 or of a's type"):
        _cpu.matmul(a, b, False, False, [0, 3], False, 0, None, out.astype(bfloat16))
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        _cpu.matmul(a.astype(np.int32), b, False, False, [0, 3], False, 0, None, out)
