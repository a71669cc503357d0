"""conv2d against float64, and the bits its contract fixes: chains, leaves, samples, threads."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from conv_checks import (
    SHAPES,
    Shape,
    backward,
    backward_weight,
    bfloat16,
    by_tree,
    float32,
    forward,
    operands,
    randoms,
    reference,
    same_bits,
    taps,
)
from kernel_checks import AMX_PATHS, VECTOR_PATHS
from matmul_checks import run

from plait import _cpu

best = _cpu.isa()
paths = [*VECTOR_PATHS, *AMX_PATHS]


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    _cpu.set_isa(best)
    _cpu.set_threads(1)


def exact_randoms(*shape, seed=0):
    """Float32 values whose products and sums a float64 holds exactly: it can imitate fma."""
    x = np.asarray(randoms(*shape, dtype=bfloat16, seed=seed), np.float32)
    return np.where(np.abs(x) < 2.0**-6, np.float32(0.75), x)


@pytest.mark.parametrize("isa", paths)
@pytest.mark.parametrize("input_first", [False, True])
@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
def test_close_to_float64(isa, input_first, dtype):
    _cpu.set_isa(isa)
    for shape in SHAPES:
        x, weight, grad = operands(shape, input_first, dtype)
        got = (
            forward(x, weight, shape, input_first),
            backward(grad, weight, shape, input_first),
            backward_weight(grad, x, shape, input_first),
        )
        exact = reference(x, weight, grad, shape, input_first)
        scale = reference(abs(x), abs(weight), abs(grad), shape, input_first)
        for g, e, s in zip(got, exact, scale, strict=True):
            assert g.shape == e.shape
            rounding = 2.0**-8 if g.dtype == bfloat16 else 0.0
            bound = 1e-5 * s + rounding * abs(e) + 1e-30
            worst = np.abs(np.asarray(g, np.float64) - e) - bound
            assert worst.size == 0 or worst.max() <= 0, (shape, g.dtype)


def chains(x, weight, grad, shape, input_first):
    """(out, grad_x, grad_weight), one float32 fma per term, in the order that ops.hpp gives."""
    w = weight.transpose(3, 1, 2, 0) if input_first else weight
    w, x, grad = w.astype(np.float64), x.astype(np.float64), grad.astype(np.float64)
    out, grad_x = np.zeros(grad.shape, float32), np.zeros(x.shape, float32)
    for y, z, at_out, at_x in taps(shape):
        for c in range(x.shape[3]):
            term = x[:, *at_x, c, None] * w[:, y, z, c]
            out[:, *at_out] = out[:, *at_out].astype(np.float64) + term
        for c in range(grad.shape[3]):
            term = grad[:, *at_out, c, None] * w[c, y, z]
            grad_x[:, *at_x] = grad_x[:, *at_x].astype(np.float64) + term
    grad_w = np.zeros(w.shape, float32)
    for y, z, at_out, at_x in taps(shape):
        g, p = grad[:, *at_out].reshape(-1, w.shape[0]), x[:, *at_x].reshape(-1, w.shape[3])
        for a, b in zip(g, p, strict=True):
            grad_w[:, y, z] = grad_w[:, y, z].astype(np.float64) + a[:, None] * b
    return out, grad_x, grad_w.transpose(3, 1, 2, 0) if input_first else grad_w


@pytest.mark.parametrize("isa", paths)
@pytest.mark.parametrize("input_first", [False, True])
def test_each_element_is_the_chain_of_the_contract(isa, input_first):
    _cpu.set_isa(isa)
    for shape in SHAPES[:12]:
        x, weight, grad = operands(shape, input_first, make=exact_randoms)
        out, grad_x, grad_weight = chains(x, weight, grad, shape, input_first)
        same_bits(forward(x, weight, shape, input_first), out)
        same_bits(backward(grad, weight, shape, input_first), grad_x)
        same_bits(backward_weight(grad, x, shape, input_first), grad_weight)


def terms(shape):
    """For each place of out: taps (kh, kw) and pixels (h, w) of x that meet there, in order; for
    each place of x: taps and places of out."""
    out = {(oh, ow): [] for oh in range(shape.out[1]) for ow in range(shape.out[2])}
    x = {(h, w): [] for h in range(shape.h) for w in range(shape.w)}
    for y, z, at_out, at_x in taps(shape):
        ends = [[range(10**6)[part] for part in at] for at in (at_out, at_x)]
        for oh, h in zip(ends[0][0], ends[1][0], strict=True):
            for ow, w in zip(ends[0][1], ends[1][1], strict=True):
                out[oh, ow].append((y, z, h, w))
                x[h, w].append((y, z, oh, ow))
    return out, x


def as_matmul(source, w, met):
    """(B, C) of the pixels of source (B, ., ., K) and taps of w (C, KH, KW, K) that met."""
    pixels = [source[:, h, v] for _, _, h, v in met] or [source[:, 0, 0, :0]]
    kernel = [w[:, y, z] for y, z, _, _ in met] or [w[:, 0, 0, :0]]
    a, b = (np.ascontiguousarray(np.concatenate(x, 1)) for x in (pixels, kernel))
    return run(a, b, False, True)


@pytest.mark.parametrize("isa", paths)
@pytest.mark.parametrize("input_first", [False, True])
def test_each_element_is_a_matmul_of_the_pixels_and_taps_that_meet(isa, input_first):
    """So bfloat16 is added in pairs, or in AMX blocks, through the taps and without padding."""
    _cpu.set_isa(isa)
    for shape in [
        *SHAPES[:11],
        Shape(2, 9, 5, 20, 9, 3, 3, 1, 1),
        Shape(2, 3, 3, 6, 9, 2, 2, 1, 0),
    ]:
        x, weight, grad = operands(shape, input_first, bfloat16)
        w = weight.transpose(3, 1, 2, 0) if input_first else weight
        of_out, of_x = terms(shape)
        out = forward(x, weight, shape, input_first, dtype=float32)
        for (oh, ow), met in of_out.items():
            same_bits(out[:, oh, ow], as_matmul(x, w, met))
        grad_x = backward(grad, weight, shape, input_first, dtype=float32)
        for (h, v), met in of_x.items():
            same_bits(grad_x[:, h, v], as_matmul(grad, w.transpose(3, 1, 2, 0), met))

        grad_w = backward_weight(grad, x, shape, input_first)
        grad_w = grad_w.transpose(3, 1, 2, 0) if input_first else grad_w
        met = list(taps(shape))
        most = max(grad[0, *at_out, 0].size for _, _, at_out, _ in met)
        unit = 2 if isa in VECTOR_PATHS or (most < 8 and most % 32) else 32
        alone = most < 8 and most % unit  # rule 4 of docs/numerics.md: too few for a pair
        for y, z, at_out, at_x in met:
            expected = np.zeros((shape.o, shape.i), float32)
            for g, p in zip(grad[:, *at_out], x[:, *at_x], strict=True):
                g, p = g.reshape(-1, shape.o), p.reshape(-1, shape.i)
                if alone:
                    g, p = g.astype(float32), p.astype(float32)
                if unit == 2 and isa in AMX_PATHS:
                    _cpu.set_isa(VECTOR_PATHS[-1])
                run(g, p, True, out=expected, accumulate=True)
                _cpu.set_isa(isa)
            same_bits(grad_w[:, y, z], expected)


@pytest.mark.parametrize("isa", [best, AMX_PATHS[0]])
@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
@pytest.mark.parametrize("leaves", [[0, 33], [0, 7, 33], [0, 5, 5, 33], [0, 1, 9, 17, 20, 26, 33]])
def test_leaves_are_merged_by_the_tree(dtype, leaves, isa):
    _cpu.set_isa(isa)
    for tail in [(3, 3, 1, 1), (3, 3, 2, 1), (1, 1, 1, 0)]:
        shape = Shape(2, 7, 6, 33, 5, *tail)
        x, weight, _ = operands(shape, True, dtype)
        parts = [
            forward(x[..., a:b], weight[a:b], shape._replace(i=b - a), True, dtype=float32)
            for a, b in pairwise(leaves)
        ]
        same_bits(forward(x, weight, shape, True, leaves), by_tree(parts).astype(dtype))

        shape = Shape(2, 7, 6, 5, 33, *tail)
        _, weight, grad = operands(shape, False, dtype)
        parts = [
            backward(grad[..., a:b], weight[a:b], shape._replace(o=b - a), False, dtype=float32)
            for a, b in pairwise(leaves)
        ]
        same_bits(backward(grad, weight, shape, False, leaves), by_tree(parts).astype(dtype))


@pytest.mark.parametrize("isa", [best, AMX_PATHS[0]])
@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
@pytest.mark.parametrize("input_first", [False, True])
def test_grad_weight_continues_sample_by_sample(dtype, input_first, isa):
    """Also beyond one pass: the images of the last shapes are cut by samples and by rows."""
    _cpu.set_isa(isa)
    for shape in [
        *SHAPES[1:12],
        Shape(3, 41, 43, 24, 40, 3, 3, 1, 1),
        Shape(2, 90, 64, 16, 32, 3, 3, 2, 1),
    ]:
        x, _, grad = operands(shape, input_first, dtype)
        whole = backward_weight(grad, x, shape, input_first)
        first = backward_weight(grad[:1], x[:1], shape, input_first)
        parts = first
        for b in range(1, len(x)):
            parts = backward_weight(grad[b : b + 1], x[b : b + 1], shape, input_first, parts)
        same_bits(parts, whole)


@pytest.mark.parametrize("isa", [best, AMX_PATHS[0]])
@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
def test_bits_do_not_depend_on_threads_batch_or_sharding(dtype, isa):
    _cpu.set_isa(isa)
    shape = Shape(5, 14, 13, 24, 70, 3, 3, 1, 1)
    x, weight, grad = operands(shape, False, dtype)
    results = []
    for threads in (1, 2, 3):
        _cpu.set_threads(threads)
        results.append(
            (
                forward(x, weight, shape, False),
                backward(grad, weight, shape, False),
                backward_weight(grad, x, shape, False),
            )
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            same_bits(a, b)
    out, grad_x, grad_weight = results[0]
    same_bits(forward(x[3:4], weight, shape, False), out[3:4])
    same_bits(backward(grad[3:4], weight, shape, False), grad_x[3:4])
    part = shape._replace(o=35)
    same_bits(forward(x, weight[35:], part, False), out[..., 35:])
    same_bits(
        backward_weight(np.ascontiguousarray(grad[..., 35:]), x, part, False), grad_weight[35:]
    )


def test_padding_adds_no_terms():
    """An infinite weight spoils the outputs that have a pixel under it, and no others."""
    shape = Shape(1, 4, 4, 2, 3, 3, 3, 1, 1)
    x, weight, grad = operands(shape, False)
    weight[1, 0, 0, 0] = np.inf
    spoilt = ~np.isfinite(forward(x, weight, shape, False))
    expected = np.zeros_like(spoilt)
    expected[:, 1:, 1:, 1] = True
    np.testing.assert_array_equal(spoilt, expected)
    spoilt = ~np.isfinite(backward(grad, weight, shape, False))
    expected = np.zeros((1, 4, 4, 2), bool)
    expected[:, :3, :3, 0] = True
    np.testing.assert_array_equal(spoilt, expected)
    grad[0, 0, 0, 2] = np.inf
    spoilt = ~np.isfinite(backward_weight(grad, x, shape, False))
    expected = np.zeros_like(weight, bool)
    expected[2, 1:, 1:] = True
    np.testing.assert_array_equal(spoilt, expected)


def test_wrong_shapes_are_named():
    x, w = np.zeros((2, 5, 5, 3), float32), np.zeros((4, 3, 3, 3), float32)
    out = np.zeros((2, 5, 5, 4), float32)
    for args, message in [
        ((x, w, False, 1, 0, [0, 3], out), r"expected \(2, 3, 3, 4\)"),
        ((x, w, False, 0, 1, [0, 3], out), "stride 0"),
        ((x, w, True, 1, 1, [0, 3], out), r"\(I, KH, KW, O\) does not fit 3 input and 4 output"),
        (
            (x, w, False, 1, 1, [0, 2], out),
            r"leaves must ascend from 0 to the inner size 3, got \{0, 2\}",
        ),
        ((x[:, :1, :1], w, False, 1, 0, [0, 3], out), "larger than the image"),
        ((x[:, ::2], w, False, 1, 1, [0, 3], out[:, :3]), "contiguous"),
        ((x[:, :, ::2], w, False, 1, 1, [0, 3], np.zeros((2, 5, 3, 4), float32)), "contiguous"),
        ((x, w.astype(bfloat16), False, 1, 1, [0, 3], out), "types are float32 and bfloat16"),
    ]:
        with pytest.raises(ValueError, match=message):
            _cpu.conv2d_forward(*args)
    grad, stack = np.zeros((2, 3, 3, 4), float32), np.zeros((1, 4, 3, 3, 3), float32)
    for args, message in [
        ((grad, x, False, 1, 0, [0, 2], [0], 0, False, stack[0]), "must be a float32 stack"),
        ((grad, x, False, 1, 0, [0, 3], [0], 0, False, stack), "ascend from 0 to the inner size 2"),
        ((grad, x, False, 1, 0, [0, 1, 2], [0, 0], 0, False, stack), "do not fit a stack of 1"),
        ((grad, x, False, 1, 0, [0, 2], [0], 0, False, stack[:, :, ::-1]), "must be contiguous"),
        ((grad.astype(bfloat16), x, False, 1, 0, [0, 2], [0], 0, False, stack), "types differ"),
    ]:
        with pytest.raises(ValueError, match=message):
            _cpu.conv2d_backward_weight(*args)
