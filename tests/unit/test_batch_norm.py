"""batch_norm against float64, its chains, threads, and what a microbatch's leaves add up to."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from kernel_checks import PATHS

from plait import _cpu

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)
best = _cpu.isa()
paths = PATHS[: PATHS.index(best) + 1]
EPSILON = 1e-5
SHAPES = [(1, 1), (2, 3), (7, 33), (100, 16), (257, 70), (50, 129), (3, 200), (4, 0)]


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    _cpu.set_isa(best)
    _cpu.set_threads(1)


def operands(rows, channels, dtype, weight_dtype):
    rng = np.random.default_rng([rows, channels])
    x = (3 + 2 * rng.standard_normal((rows, channels))).astype(float32).astype(dtype)
    grad = rng.standard_normal((rows, channels)).astype(float32).astype(dtype)
    weight = rng.standard_normal(channels).astype(float32).astype(weight_dtype)
    bias = rng.standard_normal(channels).astype(float32).astype(weight_dtype)
    return x, grad, weight, bias


def same_bits(x, y):
    assert x.dtype == y.dtype
    kind = np.uint16 if x.dtype == bfloat16 else np.uint32
    np.testing.assert_array_equal(x.view(kind), y.view(kind))


def forward(x, weight, bias, statistics=None):
    channels = x.shape[1]
    mean, variance = (np.full(channels, 7, float32) for _ in range(2))
    if statistics is not None:
        mean, variance = (s.copy() for s in statistics)
    out = np.full_like(x, 7)
    _cpu.batch_norm_forward(x, weight, bias, EPSILON, statistics is None, mean, variance, out)
    return out, mean, variance


def backward(grad, x, weight, mean, variance):
    grad_x = np.full_like(x, 7)
    _cpu.batch_norm_backward(grad, x, weight, mean, variance, EPSILON, grad_x)
    return grad_x


def backward_weight(grad, x, mean, variance, sums=None):
    out = sums or tuple(np.full(x.shape[-1], 7, float32) for _ in range(2))
    if x.ndim == 2:
        x, grad = x[None], grad[None]
    _cpu.batch_norm_backward_weight(grad, x, mean, variance, EPSILON, sums is not None, *out)
    return out


def close(got, exact, scale=1.0):
    rounding = 2.0**-8 if got.dtype == bfloat16 else 2e-6
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=rounding, atol=3e-6 * scale)


@pytest.mark.parametrize("isa", paths)
@pytest.mark.parametrize("types", [(float32, float32), (bfloat16, bfloat16), (bfloat16, float32)])
def test_close_to_float64(isa, types):
    _cpu.set_isa(isa)
    for shape in SHAPES:
        x, grad, weight, bias = operands(*shape, *types)
        out, mean, variance = forward(x, weight, bias)
        x64, g64, w64, b64 = (np.asarray(a, np.float64) for a in (x, grad, weight, bias))
        close(mean, x64.mean(0), 10)
        close(variance, x64.var(0), 10)
        # What follows is held against the statistics as stored: of one or two rows they amplify.
        rstd = 1 / np.sqrt(variance.astype(np.float64) + EPSILON)
        xhat = (x64 - mean) * rstd
        close(out, xhat * w64 + b64, 3)
        close(forward(x, weight, bias, (mean, variance))[0], xhat * w64 + b64, 3)
        rows = shape[0]
        mean_product = (g64 * xhat).mean(0)
        exact = w64 * rstd * (g64 - g64.mean(0) - xhat * mean_product)
        close(
            backward(grad, x, weight, mean, variance),
            exact,
            10 * max(1.0, (abs(w64) * rstd).max(initial=0)),
        )
        grad_weight, grad_bias = backward_weight(grad, x, mean, variance)
        close(grad_weight, (g64 * xhat).sum(0), rows)
        close(grad_bias, g64.sum(0), rows)


def test_gradient_is_that_of_the_function():
    """Finite differences of the float64 definition, batch statistics included."""
    x, grad, weight, bias = operands(6, 3, float32, float32)
    _, mean, variance = forward(x, weight, bias)
    got = backward(grad, x, weight, mean, variance)

    def value(x):
        y = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON) * weight + bias
        return float((y * grad).sum())

    for at in np.ndindex(*x.shape):
        d = np.zeros(x.shape)
        d[at] = 1e-5
        slope = (value(x + d) - value(x - d)) / 2e-5
        assert got[at] == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_sums_are_chains_over_rows():
    x, grad, weight, bias = operands(300, 21, float32, float32)
    _, mean, variance = forward(x, weight, bias)
    total, bias_total = np.zeros(21, float32), np.zeros(21, float32)
    for row, g in zip(x, grad, strict=True):
        total += row
        bias_total += g
    same_bits(mean, total / np.float32(300))
    same_bits(backward_weight(grad, x, mean, variance)[1], bias_total)


def test_grad_weight_continues_the_chain():
    x, grad, weight, bias = operands(90, 35, bfloat16, float32)
    _, mean, variance = forward(x, weight, bias)
    whole = backward_weight(grad, x, mean, variance)
    parts = backward_weight(grad[:31], x[:31], mean, variance)
    parts = backward_weight(grad[31:31], x[31:31], mean, variance, parts)
    parts = backward_weight(grad[31:], x[31:], mean, variance, parts)
    for a, b in zip(whole, parts, strict=True):
        same_bits(a, b)


def test_grad_weight_of_some_positions_of_some_samples():
    x, grad, weight, bias = operands(6 * 10, 21, float32, float32)
    _, mean, variance = forward(x, weight, bias)
    x, grad = x.reshape(6, 10, 21), grad.reshape(6, 10, 21)
    where = slice(1, 5), slice(3, 8)
    part = [np.ascontiguousarray(a[where]).reshape(-1, 21) for a in (grad, x)]
    for a, b in zip(
        backward_weight(grad[where], x[where], mean, variance),
        backward_weight(*part, mean, variance),
        strict=True,
    ):
        same_bits(a, b)


def test_bits_do_not_depend_on_threads_or_sharding_or_path():
    x, grad, weight, bias = operands(2000, 70, float32, float32)
    results = []
    for threads, isa in [(1, best), (2, best), (3, best), (1, paths[0])]:
        _cpu.set_threads(threads)
        _cpu.set_isa(isa)
        out, mean, variance = forward(x, weight, bias)
        results.append(
            (
                out,
                mean,
                variance,
                backward(grad, x, weight, mean, variance),
                *backward_weight(grad, x, mean, variance),
            )
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            same_bits(a, b)
    part = forward(np.ascontiguousarray(x[:, 33:]), weight[33:].copy(), bias[33:].copy())
    for a, b in zip(part, results[0][:3], strict=True):
        same_bits(a, np.ascontiguousarray(b[..., 33:]))


def test_no_rows_and_wrong_shapes():
    x, grad, weight, bias = operands(0, 3, float32, float32)
    with pytest.raises(ValueError, match="statistics of no rows"):
        forward(x, weight, bias)
    one = np.ones(3, float32)
    assert forward(x, weight, bias, (one, one))[0].shape == (0, 3)
    for total in backward_weight(grad, x, one, one):
        same_bits(total, np.zeros(3, float32))
    with pytest.raises(ValueError, match="per-channel array"):
        forward(np.ones((2, 4), float32), weight, bias)
