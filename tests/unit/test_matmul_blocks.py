"""The bfloat16 matmul of AMX: blocks of 32 k as its instruction adds them. The emulation is held
against a reference everywhere, and against the instruction where there is one."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from kernel_checks import AMX_PATHS, BFLOAT16, EMULATED, FLOAT32, VECTOR_PATHS, random
from matmul_checks import nearest_float32, run, same_bits, strided, tree_sum

from plait import _cpu

best = _cpu.isa()
each_path = pytest.mark.parametrize("isa", AMX_PATHS)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    _cpu.set_isa(EMULATED)
    yield
    _cpu.set_isa(best)
    _cpu.set_threads(1)


def rounded(x):
    """To float32, ties to even; what would be denormal there becomes zero. Without a sign."""
    return nearest_float32(x) if abs(x) >= 2**-126 * (1 - Fraction(1, 2**25)) else np.float32(0)


def number(x):
    """Denormals are zeros."""
    return Fraction(float(x)) if abs(float(x)) >= 2.0**-126 else Fraction(0)


def added_block(total, a, b):
    """Evens and odds are chains of their own, which meet before they are added to the sum."""
    chains = [np.float32(0), np.float32(0)]
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        chains[k % 2] = rounded(number(chains[k % 2]) + number(x) * number(y))
    both = rounded(number(chains[0]) + number(chains[1]))
    return rounded(number(total) + number(both))


def chain_of_blocks(a, b, total=0.0):
    total = np.float32(total)
    for k in range(0, len(a), 32):
        total = added_block(total, a[k : k + 32], b[k : k + 32])
    return total


def shorts(*shape, seed=0, scale=1.0):
    """Numbers of many sizes: sums must be rounded."""
    spread = 2.0 ** np.random.default_rng([seed, *shape]).integers(-12, 12, shape)
    return (random(shape, FLOAT32, seed) * spread * scale).astype(BFLOAT16)


@each_path
@pytest.mark.parametrize("depth", [1, 31, 32, 33, 64, 75])
@pytest.mark.parametrize("scale", [1.0, 1e-19, 3e-21, 1e-39])
def test_an_element_is_a_chain_of_blocks(isa, depth, scale):
    _cpu.set_isa(isa)
    a = shorts(3, depth, scale=scale)
    b = shorts(depth, 5, seed=1, scale=1 if scale < 1e-30 else scale)
    for accumulate in (False, True):
        start = random((3, 5), FLOAT32, 2, scale**2)
        out = run(a, b, out=start.copy(), accumulate=accumulate)
        for i in range(3):
            for j in range(5):
                total = start[i, j] if accumulate else 0
                assert out[i, j] == chain_of_blocks(a[i], b[:, j], total), (i, j)


def test_evens_and_odds_meet_before_the_sum():
    """2^24 + 1 is no float32: which additions are made can be read off the results."""
    one, big = 1.0, 2.0**24
    a = np.ones((1, 64), BFLOAT16)

    def of(terms):
        b = np.zeros((64, 1), BFLOAT16)
        for k, term in terms.items():
            b[k] = term
        return run(a, b)[0, 0]

    assert of({0: big, 2: one, 4: one}) == big  # one chain
    assert of({0: big, 1: one, 3: one}) == big + 2  # two
    assert of({0: big, 33: one, 34: one}) == big + 2  # two blocks
    assert of({0: big, 33: one, 31: one}) == big
    _cpu.set_isa(VECTOR_PATHS[-1])
    assert of({0: big, 1: one, 3: one}) == big + 1  # the second of a pair first
    assert of({0: big, 33: one, 34: one}) == big


SHAPES = [(1, 1, 1), (16, 64, 32), (17, 33, 31), (32, 4200, 33), (49, 95, 70), (64, 64, 64)]


@each_path
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_bits_depend_on_k_alone(isa, m, k, n):
    """Not on rows, columns, transposes, strides, threads, or where elements lie in tiles."""
    _cpu.set_isa(isa)
    a, b = shorts(m, k), shorts(k, n, seed=1)
    expected = run(a, b)
    for i, j in ((0, 0), (m - 1, n - 1), (m // 2, n // 3)):
        assert expected[i, j] == chain_of_blocks(a[i], b[:, j])
        same_bits(run(a[i : i + 1], b[:, j : j + 1].copy()), expected[i : i + 1, j : j + 1])
    at, bt = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    for threads in (1, 2, 3):
        _cpu.set_threads(threads)
        same_bits(run(strided(a, 3), strided(b, 5)), expected)
        same_bits(run(at, b, True), expected)
        same_bits(run(strided(at, 7), strided(bt, 1), True, True), expected)
        same_bits(run(a, bt, False, True), expected)
    wide = np.full((m + 2, n + 7), 5, FLOAT32)
    run(a, b, out=wide[1:-1, 3 : 3 + n])
    same_bits(wide[1:-1, 3 : 3 + n], expected)
    wide[1:-1, 3 : 3 + n] = 5
    assert (wide == 5).all()


def test_threads_take_parts_of_a_large_one():
    a, b = shorts(300, 130), shorts(130, 290, seed=1)
    expected = run(a, b)
    for threads in (2, 3):
        _cpu.set_threads(threads)
        same_bits(run(a, b), expected)


@pytest.mark.parametrize("period", [8, 9, 31, 32, 33, 64, 75, 4107])
def test_samples_do_not_share_blocks(period):
    a, b = shorts(5 * period, 17), shorts(5 * period, 35, seed=1)
    whole = run(a, b, True, period=period)
    element = np.float32(0)
    for i in range(0, 5 * period, period):
        element = chain_of_blocks(a[i : i + period, 3], b[i : i + period, 33], element)
    assert whole[3, 33] == element
    for at_once in (1, 2):
        out = np.zeros_like(whole)
        for i in range(0, 5 * period, at_once * period):
            rows = slice(i, i + at_once * period)
            run(a[rows], b[rows], True, out=out, accumulate=True, period=period)
        same_bits(out, whole)
    assert (whole != run(a, b, True)).any() == (period % 32 != 0)


@pytest.mark.parametrize("period", [1, 2, 6, 7])
def test_short_samples_are_added_as_on_the_other_paths(period):
    a, b = shorts(9 * period, 17), shorts(9 * period, 35, seed=1)
    out = run(a, b, True, period=period)
    _cpu.set_isa(VECTOR_PATHS[-1])
    same_bits(out, run(a, b, True, period=period))


def test_leaves_are_blocks_of_their_own_and_merge_in_the_tree():
    for m, k, n in [(5, 70, 3), (31, 700, 45), (64, 5000, 64)]:
        a, b, bias = shorts(m, k), shorts(k, n, seed=1), random((n,), FLOAT32, 2)
        for count in (1, 2, 3, 7):
            leaves = [i * k // count for i in range(count + 1)]
            expected = tree_sum([run(a[:, i:j], b[i:j]) for i, j in pairwise(leaves)])
            same_bits(run(a, b, leaves=leaves), expected)
            same_bits(run(a, b, leaves=leaves, bias=bias), expected + bias)
            short = run(a, b, leaves=leaves, bias=bias, dtype=BFLOAT16)
            same_bits(short, (expected + bias).astype(BFLOAT16))


def test_accumulate_goes_on_at_blocks():
    for m, k1, k2, n in [(3, 32, 1, 2), (20, 256, 256, 40), (33, 96, 477, 50), (15, 0, 5, 3)]:
        a, b = shorts(m, k1 + k2), shorts(k1 + k2, n, seed=1)
        whole = run(a, b)
        parts = strided(run(a[:, :k1], b[:k1]), 4)
        run(a[:, k1:], b[k1:], out=parts, accumulate=True)
        same_bits(parts, whole)


def test_denormals_are_kept_outside_the_chain():
    """A sum below the smallest normal float32 is no term, but a bias is."""
    bias = np.full(3, 2.0**-130, FLOAT32)
    a, b = np.zeros((2, 40), BFLOAT16), np.zeros((40, 3), BFLOAT16)
    same_bits(run(a, b, bias=bias), np.broadcast_to(bias, (2, 3)).copy())


@pytest.mark.parametrize("isa", [*VECTOR_PATHS, *AMX_PATHS])
def test_what_fills_a_pair_or_block_up_is_zero_times_zero(isa):
    """Not what an earlier call left in packed panels."""
    _cpu.set_isa(isa)
    nothing = np.full((64, 64), np.nan, BFLOAT16)
    a, b = shorts(17, 33), shorts(33, 40, seed=1)
    expected = run(a, b)
    for ta, tb in ((False, False), (True, True)):
        assert np.isnan(run(nothing, nothing)).all()
        x, y = (np.ascontiguousarray(m.T) if t else m for m, t in ((a, ta), (b, tb)))
        same_bits(run(x, y, ta, tb), expected)


def test_float32_and_mixed_operands_have_no_blocks():
    a, b = random((40, 90)), random((90, 50), seed=1)
    found = [run(a, b), run(a.astype(BFLOAT16), b)]
    _cpu.set_isa(VECTOR_PATHS[-1])
    same_bits(found[0], run(a, b))
    same_bits(found[1], run(a.astype(BFLOAT16), b))


@pytest.mark.skipif("amx_bf16" not in AMX_PATHS, reason="no AMX here")
@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e-19, 3e-20, 1e-39])
def test_the_emulation_is_the_instruction(scale):
    for m, k, n in [*SHAPES, (200, 3000, 200)]:
        a = shorts(m, k, scale=scale)
        b = shorts(k, n, seed=1, scale=1 if scale < 1e-30 else scale)
        _cpu.set_isa(EMULATED)
        expected = run(a, b)
        _cpu.set_isa("amx_bf16")
        for threads in (1, 2):
            _cpu.set_threads(threads)
            same_bits(run(a, b), expected)
