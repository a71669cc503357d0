"""Sums and copies against numpy, and the order of additions their contract fixes."""

import functools
import math
from collections.abc import Iterator
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from kernel_bits import assert_cpu_bits
from kernel_checks import PATHS

from plait import _cpu
from plait.comm import tree

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)
best = _cpu.isa()
paths = PATHS[: PATHS.index(best) + 1]
SIZES = [0, 1, 15, 1024, 1025, 5000, 100_003]


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    _cpu.set_isa(best)
    _cpu.set_threads(1)


@pytest.fixture(params=[(isa, threads) for isa in paths for threads in (1, 3)], ids=str)
def everywhere(request):
    """Each instruction path, with 1 and 3 threads: results must not notice."""
    _cpu.set_isa(request.param[0])
    _cpu.set_threads(request.param[1])


def randoms(*shape, dtype=float32, seed=0):
    x = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return x.astype(np.float32).astype(dtype)


def same_bits(x, y):
    kind = np.uint16 if x.dtype == bfloat16 else np.uint32
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(
        np.ascontiguousarray(x).view(kind), np.ascontiguousarray(y).view(kind)
    )


@pytest.mark.usefixtures("everywhere")
def test_add_is_one_float32_chain_rounded_once():
    for n in SIZES:
        for count in (1, 2, 5):
            for dtype in (float32, bfloat16):
                xs = [randoms(n, dtype=dtype, seed=i) for i in range(count)]
                chain = xs[0].astype(np.float32)
                for x in xs[1:]:
                    chain = chain + x.astype(np.float32)
                for out_dtype in (float32, bfloat16):
                    out = np.full(n, 9, out_dtype)
                    _cpu.add(xs, out)
                    same_bits(out, chain.astype(out_dtype))
    xs = [randoms(3, 4), randoms(3, 4, seed=1)]
    expected = xs[0] + xs[1]
    _cpu.add(xs, xs[0])  # in place
    same_bits(xs[0], expected)


def tree_reference(parts, merges):
    stack = []
    for part, count in zip(parts, merges, strict=True):
        stack.append(part)
        for _ in range(count):
            upper = stack.pop()
            stack[-1] = stack[-1] + upper
    (root,) = stack
    return root


@pytest.mark.usefixtures("everywhere")
def test_tree_sum_is_the_tree():
    for leaves in (1, 2, 3, 6, 7, 16, 33):
        merges = tree.merges(leaves, [(i, i + 1) for i in range(leaves)])
        for shape in [(0,), (1,), (5, 7), (3, 1100), (2, 50, 999)]:
            parts = [randoms(*shape, seed=i) for i in range(leaves)]
            bias = randoms(shape[-1], seed=99)
            expected = tree_reference(parts, merges)
            for dtype in (float32, bfloat16):
                out = np.full(shape, 9, dtype)
                _cpu.tree_sum(parts, merges, None, out)
                same_bits(out, expected.astype(dtype))
                _cpu.tree_sum(parts, merges, bias, out)
                same_bits(out, (expected + bias).astype(dtype))
                _cpu.tree_sum(parts, merges, bias.astype(bfloat16), out)
                wide = bias.astype(bfloat16).astype(np.float32)
                same_bits(out, (expected + wide).astype(dtype))


def test_tree_sum_of_uneven_nodes():
    """Ranks send inner nodes of the tree, not leaves."""
    split = tree.Leaves.even(8, 3)
    leaves = [randoms(300, seed=i) for i in range(8)]
    whole = tree_reference(leaves, tree.merges(8, [(i, i + 1) for i in range(8)]))
    nodes = split.all_nodes()
    parts = [
        tree_reference(leaves[i:j], tree.merges(j - i, [(k, k + 1) for k in range(j - i)]))
        for i, j in nodes
    ]
    out = np.empty(300, np.float32)
    _cpu.tree_sum(parts, split.merges(), None, out)
    same_bits(out, whole)


@pytest.mark.usefixtures("everywhere")
def test_sum_rows_is_one_chain_a_channel():
    for b, s, c in [
        (0, 3, 4),
        (2, 0, 4),
        (2, 3, 0),
        (1, 1, 1),
        (3, 50, 130),
        (2, 3, 3000),
        (2, 400, 1),
    ]:
        for dtype in (float32, bfloat16):
            wide = randoms(b, s + 2, c + 3, dtype=dtype)
            x = wide[:, 1 : s + 1, :c]
            chain = np.zeros(c, np.float32)
            for row in x.astype(np.float32).reshape(b * s, c):
                chain = chain + row
            out = np.full(c, 9, np.float32)
            _cpu.sum_rows(x, False, out)
            same_bits(out, chain)
            half = b // 2
            _cpu.sum_rows(x[:half], False, out)
            _cpu.sum_rows(x[half:], True, out)
            same_bits(out, chain)


@pytest.mark.usefixtures("everywhere")
def test_convert_rounds_to_nearest_even_over_any_rows():
    x = randoms(3, 5, 7, 70)
    x[0, 0, 0, :4] = [np.nan, np.inf, -np.inf, -0.0]
    views = [
        lambda x: x,
        lambda x: x[..., :33],
        lambda x: x[:, 1:3],
        lambda x: x[1:, :, ::2],
        lambda x: x.transpose(2, 0, 1, 3),
        lambda x: x[:0],
        lambda x: x[0, 0, 0],
        lambda x: np.broadcast_to(x[0], (4, 5, 7, 70)),
        lambda x: x[..., :1],
        lambda x: x[..., 0].copy(),
        lambda x: np.array(x[1, 1, 1, 1]),
    ]
    for view in views:
        for a, b in [
            (float32, bfloat16),
            (bfloat16, float32),
            (float32, float32),
            (bfloat16, bfloat16),
        ]:
            source = view(x.astype(a))
            out = np.full((*source.shape[:-1], source.shape[-1] + 3) if source.ndim else (), 9, b)
            out = out[..., : source.shape[-1]] if source.ndim else out
            _cpu.convert(source, out)
            same_bits(out, source.astype(b))
    every = np.arange(2**16, dtype=np.uint16).view(bfloat16)
    out = np.empty(2**16, np.float32)
    _cpu.convert(every, out)
    same_bits(out, every.astype(np.float32))
    ties = (np.arange(2**17, dtype=np.uint32) << 15).view(np.float32)  # halfway between neighbours
    out = np.empty(2**17, bfloat16)
    _cpu.convert(ties, out)
    number = ~np.isnan(ties)
    same_bits(out[number], ties[number].astype(bfloat16))
    assert np.isnan(out[~number].astype(np.float32)).all()


def chunk_sum(x, squares):
    """One chunk as ops.hpp orders it: 16 lanes, folded in halves."""
    terms = np.zeros(1024, np.float32)
    terms[: len(x)] = x * x if squares else x
    lanes = np.zeros(16, np.float32)
    for row in terms.reshape(64, 16):
        lanes = lanes + row
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return lanes[0]


@pytest.mark.usefixtures("everywhere")
def test_exact_sum_is_exact_over_chunks():
    for n in SIZES:
        x = randoms(n) * np.exp2(np.random.default_rng(1).integers(-40, 40, n)).astype(np.float32)
        for squares in (False, True):
            chunks = [chunk_sum(x[i : i + 1024], squares) for i in range(0, n, 1024)]
            limbs = np.zeros(_cpu.LIMBS, np.int64)
            _cpu.exact_sum(x, squares, limbs)
            assert _cpu.exact_value(limbs) == math.fsum(float(c) for c in chunks)


def limbs_of(x, squares=False, kernels=_cpu):
    limbs = np.zeros(kernels.LIMBS, np.int64)
    kernels.exact_sum(x, squares, limbs)
    return limbs


@pytest.mark.cuda
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("n", [0, 1, 15, 1024, 1025, 9000, 140_003])
def test_exact_sums_have_the_cpus_limbs(n, skip):
    x = randoms(n + skip)[skip:] * np.exp2(np.random.default_rng(1).integers(-40, 40, n))
    x = np.append(np.zeros(skip), x).astype(np.float32)[skip:]

    def call(kernels):
        sums = [limbs_of(x, squares, kernels) for squares in (False, True)]
        kernels.exact_sum(x[: n // 2], False, sums[0])
        return *sums, np.array([kernels.exact_value(limbs) for limbs in sums])

    assert_cpu_bits(call)


def test_exact_sums_do_not_depend_on_order_or_split():
    x = (randoms(200, 1024) * np.exp2(np.arange(-100, 100, dtype=np.float32))[:, None]).astype(
        np.float32
    )
    whole = limbs_of(x)
    np.testing.assert_array_equal(limbs_of(np.random.default_rng(0).permutation(x)), whole)
    np.testing.assert_array_equal(sum(limbs_of(part) for part in np.array_split(x, 7)), whole)
    again = limbs_of(x[:60])
    _cpu.exact_sum(x[60:], False, again)
    np.testing.assert_array_equal(again, whole)


def test_exact_value_rounds_once_at_every_magnitude():
    rng = np.random.default_rng(0)
    big, tiny = np.float32(3.4028235e38), np.float32(1.4e-45)
    cases = [
        [0.0],
        [-0.0],
        [tiny],
        [-tiny],
        [big] * 9,
        [-big] * 9,
        [big, tiny],
        [big, -tiny],
        [-big, tiny],
    ]
    cases += [
        [1.0, 2.0**-53],
        [1.0, 2.0**-53, 2.0**-140],
        [1.0, -(2.0**-54), -(2.0**-140)],
        [big, -big, tiny],
    ]
    cases += [
        (rng.standard_normal(50) * 2.0 ** rng.integers(-120, 120, 50)).tolist() for _ in range(200)
    ]
    for case in cases:
        values = np.array(case, np.float32)
        chunks = np.zeros((len(values), 1024), np.float32)
        chunks[:, 5] = values
        limbs = limbs_of(chunks)
        assert _cpu.exact_value(limbs) == float(sum(Fraction(float(v)) for v in values))


def test_exact_sum_flags_what_is_not_finite(kernels):
    of = functools.partial(limbs_of, kernels=kernels)
    for bad in (np.nan, np.inf, -np.inf):
        x = randoms(5000)
        x[4097] = bad
        assert math.isnan(kernels.exact_value(of(x)))
        assert math.isnan(kernels.exact_value(of(x) + of(randoms(10))))
    assert math.isnan(kernels.exact_value(of(np.full(2, 3e38, np.float32), True)))


def test_errors_name_the_shapes():
    x, out = randoms(2, 3), randoms(2, 4)
    for call in (lambda: _cpu.add([x], out), lambda: _cpu.convert(x, out)):
        with pytest.raises(ValueError, match=r"\(2, 3\) float32.*\(2, 4\) float32"):
            call()
    with pytest.raises(ValueError, match="at least one input"):
        _cpu.add([], out)
    with pytest.raises(ValueError, match="differ in type"):
        _cpu.add([x, x.astype(bfloat16)], x)
    with pytest.raises(ValueError, match="contiguous"):
        _cpu.add([out[:, :3]], x)
    with pytest.raises(ValueError, match="leave 2 parts"):
        _cpu.tree_sum([x, x], [0, 0], None, x)
    with pytest.raises(ValueError, match=r"merges\[0\] = 1 with 1 parts"):
        _cpu.tree_sum([x, x], [1, 0], None, x)
    with pytest.raises(ValueError, match=r"bias is \(4,\)"):
        _cpu.tree_sum([x], [0], randoms(4), x)
    with pytest.raises(ValueError, match="must be float32"):
        _cpu.tree_sum([x.astype(bfloat16)], [0], None, x)
    with pytest.raises(ValueError, match=r"\(2, 3\) float32"):
        _cpu.sum_rows(x, False, randoms(3))
    with pytest.raises(ValueError, match="stride 1"):
        _cpu.convert(x.T, np.empty((3, 2), np.float32))
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        _cpu.convert(x.astype(np.int32), x)
    with pytest.raises(ValueError, match="limbs"):
        _cpu.exact_sum(x, False, np.zeros(3, np.int64))
