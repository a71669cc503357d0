"""Pooling against plain loops: first maximum, NaN, overlapping windows, the chain of the mean."""

import functools
from collections.abc import Iterator

import kernel_backends
import ml_dtypes
import numpy as np
import pytest
from kernel_bits import assert_cpu_bits

from plait import _cpu

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)
best = _cpu.isa()

# batch, height, width, channels, size, stride, padding
SHAPES = [
    (1, 1, 1, 1, 1, 1, 0),
    (2, 7, 9, 3, 3, 2, 1),
    (2, 8, 6, 33, 2, 2, 0),
    (1, 5, 5, 16, 3, 1, 1),
    (3, 10, 7, 5, 2, 3, 0),
    (1, 3, 4, 5, 5, 2, 3),
    (2, 4, 4, 1, 7, 3, 3),
    (0, 4, 4, 2, 2, 2, 0),
    (2, 4, 4, 0, 2, 2, 0),
]
CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    _cpu.set_isa(best)
    _cpu.set_threads(1)


def images(shape, dtype, seed=0):
    # Few distinct values: windows with equal maxima.
    x = np.random.default_rng([seed, *shape]).integers(-3, 3, shape)
    return x.astype(float32).astype(dtype)


def pooled(shape):
    b, h, w, c, size, stride, padding = shape
    return b, (h + 2 * padding - size) // stride + 1, (w + 2 * padding - size) // stride + 1, c


def windows(shape):
    """((b, oh, ow), [(place, (b, h, w)), ...]) of the pixels in each window."""
    _, h, w, _, size, stride, padding = shape
    for at in np.ndindex(*pooled(shape)[:3]):
        inside = []
        for place in range(size * size):
            y = at[1] * stride - padding + place // size
            x = at[2] * stride - padding + place % size
            if 0 <= y < h and 0 <= x < w:
                inside.append((place, (at[0], y, x)))
        yield at, inside


def run(x, shape, kernels=_cpu):
    out, index = np.full(pooled(shape), 7, x.dtype), np.full(pooled(shape), -9, np.int32)
    kernels.max_pool_forward(x, *shape[4:], out, index)
    return out, index


@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
@pytest.mark.parametrize("isa", [*sorted({"portable", best}), CUDA])
def test_max_pool_and_its_gradient(dtype, isa):
    kernels = kernel_backends.kernels("cuda" if isa == "cuda" else "cpu")
    if isa != "cuda":
        _cpu.set_isa(isa)
    for shape in SHAPES:
        x = images(shape[:4], dtype)
        out, index = run(x, shape, kernels)
        grad = np.random.default_rng(1).standard_normal(out.shape).astype(float32).astype(dtype)
        grad_x = np.full_like(x, 7)
        kernels.max_pool_backward(grad, index, *shape[4:], grad_x)
        sums = np.zeros(x.shape, float32)
        for at, inside in windows(shape):
            values = np.array([x[p] for _, p in inside])
            chosen = np.argmax(values, axis=0)  # the first
            places = np.array([place for place, _ in inside])
            np.testing.assert_array_equal(out[at], values.max(0))
            np.testing.assert_array_equal(index[at], places[chosen])
            for c, k in enumerate(chosen):
                sums[(*inside[k][1], c)] += np.float32(grad[(*at, c)])
        np.testing.assert_array_equal(grad_x, sums.astype(dtype))


def test_max_pool_shows_nan_and_lowest_values(kernels):
    shape = (1, 4, 4, 2, 2, 2, 0)
    x = np.full(shape[:4], -np.inf, float32)
    x[0, 0, 1, 0] = x[0, 1, 1, 0] = np.nan
    out, index = run(x, shape, kernels)
    assert np.isnan(out[0, 0, 0, 0])
    assert index[0, 0, 0, 0] == 1
    assert np.isneginf(out[0, 0, 0, 1])
    assert index[0, 0, 0, 1] == 0


def test_bits_do_not_depend_on_threads():
    shape = (3, 40, 41, 33, 3, 2, 1)
    x = images(shape[:4], float32)
    results = []
    for threads in (1, 2):
        _cpu.set_threads(threads)
        out, index = run(x, shape)
        grad = np.random.default_rng(1).standard_normal(out.shape).astype(float32)
        grad_x, mean = np.full_like(x, 7), np.full((3, 33), 7, float32)
        _cpu.max_pool_backward(grad, index, *shape[4:], grad_x)
        _cpu.mean_pool_forward(x.reshape(3, -1, 33), mean)
        results.append((out, index, grad_x, mean))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
def test_the_cpus_bits(dtype):
    """Packs of channels, unaligned arrays, more positions than a block spreads."""
    for shape in [*SHAPES, (2, 11, 37, 40, 3, 2, 1), (1, 9, 9, 8, 3, 1, 1)]:

        def call(kernels, shape=shape, skip=0):
            def array(*shape, dtype=dtype):
                return np.full(int(np.prod(shape)) + skip, 7, dtype)[skip:].reshape(shape)

            x, grad_x = array(*shape[:4]), array(*shape[:4])
            x[...] = images(shape[:4], dtype)
            out, index = array(*pooled(shape)), array(*pooled(shape), dtype=np.int32)
            kernels.max_pool_forward(x, *shape[4:], out, index)
            grad = array(*out.shape)
            grad[...] = images(out.shape, dtype, 1)
            kernels.max_pool_backward(grad, index, *shape[4:], grad_x)
            rows, again = array(shape[0], shape[3]), array(*shape[:4])
            flat = x.reshape(shape[0], shape[1] * shape[2], shape[3])
            if flat.size:
                kernels.mean_pool_forward(flat, rows)
                kernels.mean_pool_backward(rows, again.reshape(flat.shape))
            return out, index, grad_x, rows, again

        assert_cpu_bits(call)
        assert_cpu_bits(functools.partial(call, skip=1))


@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 49, 33), (3, 7, 5), (0, 4, 3), (2, 100, 64)])
def test_mean_pool_is_one_chain(kernels, dtype, shape):
    x = np.random.default_rng(shape).standard_normal(shape).astype(float32).astype(dtype)
    total = np.zeros((shape[0], shape[2]), float32)
    for s in range(shape[1]):
        total += x[:, s].astype(float32)
    out = np.full(total.shape, 7, dtype)
    kernels.mean_pool_forward(x, out)
    np.testing.assert_array_equal(out, (total / np.float32(shape[1])).astype(dtype))
    grad_x = np.full_like(x, 7)
    kernels.mean_pool_backward(out, grad_x)
    expected = (out.astype(float32) / np.float32(shape[1])).astype(dtype)
    np.testing.assert_array_equal(grad_x, np.repeat(expected[:, None], shape[1], axis=1))


def test_wrong_shapes_are_named(kernels):
    x = np.zeros((1, 4, 4, 2), float32)
    out, index = np.zeros((1, 2, 2, 2), float32), np.zeros((1, 2, 2, 2), np.int32)
    for args, message in [
        ((x, 3, 1, 0, out, index[:, :1]), "index is"),
        ((x, 2, 1, 0, out, index), r"expected \(1, 3, 3, 2\)"),
        ((x, 2, 2, 2, out, index), "padding is below size"),
        ((x, 9, 2, 1, out, index), "larger than the image"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernels.max_pool_forward(*args)
    with pytest.raises(ValueError, match="mean of no positions"):
        kernels.mean_pool_forward(np.zeros((2, 0, 3), float32), np.zeros((2, 3), float32))
