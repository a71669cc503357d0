"""batch_norm against float64, its chains, threads, and what a microbatch's leaves add up to."""

from collections.abc import Iterator

import kernel_backends
import ml_dtypes
import numpy as np
import pytest
from kernel_backends import in_every_order
from kernel_bits import assert_cpu_bits
from kernel_checks import PATHS

from plait import _cpu

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)
best = _cpu.isa()
paths = PATHS[: PATHS.index(best) + 1]
EPSILON = 1e-5
SHAPES = [(1, 1), (2, 3), (7, 33), (100, 16), (257, 70), (50, 129), (3, 200), (4, 0)]
CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


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


def forward(x, weight, bias, statistics=None, kernels=_cpu):
    channels = x.shape[1]
    mean, variance = (np.full(channels, 7, float32) for _ in range(2))
    if statistics is not None:
        mean, variance = (s.copy() for s in statistics)
    out = np.full_like(x, 7)
    kernels.batch_norm_forward(x, weight, bias, EPSILON, statistics is None, mean, variance, out)
    return out, mean, variance


def backward(grad, x, weight, mean, variance, kernels=_cpu):
    grad_x = np.full_like(x, 7)
    kernels.batch_norm_backward(grad, x, weight, mean, variance, EPSILON, grad_x)
    return grad_x


def backward_weight(grad, x, mean, variance, sums=None, kernels=_cpu):
    out = sums or tuple(np.full(x.shape[-1], 7, float32) for _ in range(2))
    if x.ndim == 2:
        x, grad = x[None], grad[None]
    kernels.batch_norm_backward_weight(grad, x, mean, variance, EPSILON, sums is not None, *out)
    return out


def close(got, exact, scale=1.0):
    rounding = 2.0**-8 if got.dtype == bfloat16 else 2e-6
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=rounding, atol=3e-6 * scale)


@pytest.mark.parametrize("isa", [*paths, CUDA])
@pytest.mark.parametrize("types", [(float32, float32), (bfloat16, bfloat16), (bfloat16, float32)])
def test_close_to_float64(isa, types):
    kernels = kernel_backends.kernels("cuda" if isa == "cuda" else "cpu")
    if isa != "cuda":
        _cpu.set_isa(isa)
    for shape in SHAPES:
        x, grad, weight, bias = operands(*shape, *types)
        out, mean, variance = forward(x, weight, bias, kernels=kernels)
        x64, g64, w64, b64 = (np.asarray(a, np.float64) for a in (x, grad, weight, bias))
        close(mean, x64.mean(0), 10)
        close(variance, x64.var(0), 10)
        # What follows is held against the statistics as stored: of one or two rows they amplify.
        rstd = 1 / np.sqrt(variance.astype(np.float64) + EPSILON)
        xhat = (x64 - mean) * rstd
        close(out, xhat * w64 + b64, 3)
        close(forward(x, weight, bias, (mean, variance), kernels)[0], xhat * w64 + b64, 3)
        rows = shape[0]
        mean_product = (g64 * xhat).mean(0)
        exact = w64 * rstd * (g64 - g64.mean(0) - xhat * mean_product)
        close(
            backward(grad, x, weight, mean, variance, kernels),
            exact,
            10 * max(1.0, (abs(w64) * rstd).max(initial=0)),
        )
        grad_weight, grad_bias = backward_weight(grad, x, mean, variance, kernels=kernels)
        close(grad_weight, (g64 * xhat).sum(0), rows)
        close(grad_bias, g64.sum(0), rows)


def test_gradient_is_that_of_the_function(kernels):
    """Finite differences of the float64 definition, batch statistics included."""
    x, grad, weight, bias = operands(6, 3, float32, float32)
    _, mean, variance = forward(x, weight, bias, kernels=kernels)
    got = backward(grad, x, weight, mean, variance, kernels=kernels)

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


def test_samples_continue_the_chain(kernels):
    """The rows of a microbatch's samples: a later call with accumulate goes on."""
    x, grad, weight, bias = operands(6 * 41, 35, bfloat16, float32)
    _, mean, variance = forward(x, weight, bias, kernels=kernels)
    x, grad = x.reshape(6, 41, 35), grad.reshape(6, 41, 35)
    whole = backward_weight(grad, x, mean, variance, kernels=kernels)
    sums = backward_weight(grad[:2], x[:2], mean, variance, kernels=kernels)
    for part in (slice(2, 2), slice(2, 3), slice(3, 6)):
        sums = backward_weight(grad[part], x[part], mean, variance, sums, kernels)
    for a, b in zip(whole, sums, strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("rows", [5, 1024, 2500])
def test_blocks_of_rows(kernels, rows):
    """More than one block of 1024, and the threads of a block in any order."""
    x, grad, weight, bias = operands(rows, 6, float32, float32)
    results = []
    for _ in in_every_order(kernels):
        out, mean, variance = forward(x, weight, bias, kernels=kernels)
        grad_x = backward(grad, x, weight, mean, variance, kernels)
        results.append([a.tobytes() for a in (out, mean, variance, grad_x)])
    close(mean, x.astype(np.float64).mean(0), 10)
    close(variance, x.astype(np.float64).var(0), 10)
    assert all(result == results[0] for result in results)


@pytest.mark.cuda
@pytest.mark.parametrize("types", [(float32, float32), (bfloat16, bfloat16), (bfloat16, float32)])
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("shape", [(7, 33), (30, 16), (3, 200), (4, 0)])
def test_known_statistics_give_the_cpus_bits(shape, skip, types):
    x, _, weight, bias = operands(shape[0], shape[1] + skip, *types)
    x, weight, bias = (
        x.reshape(-1)[skip:][: shape[0] * shape[1]].reshape(shape),
        weight[skip:],
        bias[skip:],
    )
    statistics = (
        np.linspace(-1, 1, shape[1], dtype=float32),
        np.linspace(0, 3, shape[1], dtype=float32),
    )
    assert_cpu_bits(lambda kernels: forward(x, weight, bias, statistics, kernels))


def test_grad_weight_of_some_positions_of_some_samples(kernels):
    x, grad, weight, bias = operands(6 * 10, 21, float32, float32)
    _, mean, variance = forward(x, weight, bias, kernels=kernels)
    x, grad = x.reshape(6, 10, 21), grad.reshape(6, 10, 21)
    where = slice(1, 5), slice(3, 8)
    part = [np.ascontiguousarray(a[where]) for a in (grad, x)]
    for a, b in zip(
        backward_weight(grad[where], x[where], mean, variance, kernels=kernels),
        backward_weight(*part, mean, variance, kernels=kernels),
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


def test_no_rows_and_wrong_shapes(kernels):
    x, grad, weight, bias = operands(0, 3, float32, float32)
    with pytest.raises(ValueError, match="statistics of no rows"):
        forward(x, weight, bias, kernels=kernels)
    one = np.ones(3, float32)
    assert forward(x, weight, bias, (one, one), kernels=kernels)[0].shape == (0, 3)
    for total in backward_weight(grad, x, one, one, kernels=kernels):
        same_bits(total, np.zeros(3, float32))
    with pytest.raises(ValueError, match="per-channel array"):
        forward(np.ones((2, 4), float32), weight, bias, kernels=kernels)


@pytest.mark.parametrize("channels", [0, 1, 7, 300])
def test_running_statistics_round_every_operation(channels, kernels):
    rng = np.random.default_rng(channels)
    x, total, running = (rng.standard_normal(channels).astype(float32) for _ in range(3))
    x[:1], factor = -0.0, np.float32(257 / 256)
    for accumulate in (False, True):
        out = total.copy()
        kernels.add_statistic(x, factor, 5, accumulate, out)
        same_bits(out, (total if accumulate else np.zeros_like(x)) + np.float32(5) * (x * factor))
    out = running.copy()
    kernels.moving_average(total, 12, 0.1, out)
    same_bits(out, running + np.float32(0.1) * (total / np.float32(12) - running))


def test_running_statistics_of_other_channels_are_refused(kernels):
    x, other = np.zeros(3, float32), np.zeros(4, float32)
    with pytest.raises(ValueError, match=r"add_statistic: x is \(3,\)"):
        kernels.add_statistic(x, 1.0, 1.0, False, other)
    with pytest.raises(ValueError, match=r"moving_average: total is \(4,\)"):
        kernels.moving_average(other, 1.0, 0.1, x)
