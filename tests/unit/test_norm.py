"""Layer norm and RMS norm against float64; chains and bits as the contract says."""

import numpy as np
import pytest
from kernel_bits import assert_cpu_bits
from kernel_checks import (
    BFLOAT16,
    FLOAT32,
    STORAGE,
    assert_near,
    assert_same_bits,
    bits,
    random,
    strided,
    wide,
)

from plait import _cpu

SHAPES = [(0, 8), (1, 1), (3, 16), (2, 63), (5, 64), (4, 65), (7, 200), (33, 768)]
EPSILON = 1e-5


def layer_forward(x, weight, bias, kernels=_cpu):
    out = np.empty_like(x)
    mean, rstd = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    kernels.layer_norm_forward(x, None, weight, bias, EPSILON, None, out, mean, rstd)
    return out, mean, rstd


def reference(x, weight, bias, grad, subtract_mean):
    """out, mean, rstd, grad_x, grad_weight, grad_bias in float64."""
    x, weight, bias, grad = wide(x), wide(weight), wide(bias), wide(grad)
    mean = x.mean(1) if subtract_mean else np.zeros(len(x))
    centred = x - mean[:, None]
    rstd = 1 / np.sqrt((centred**2).mean(1) + EPSILON)
    y = centred * rstd[:, None]
    g = grad * weight
    grad_x = g - y * (g * y).mean(1, keepdims=True)
    if subtract_mean:
        grad_x -= g.mean(1, keepdims=True)
    return y * weight + bias, mean, rstd, grad_x * rstd[:, None], (grad * y).sum(0), grad.sum(0)


@pytest.mark.parametrize("weight_dtype", ["storage", "float32"])
@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(kernels, shape, dtype, weight_dtype):
    rows, channels = shape
    of_weight = dtype if weight_dtype == "storage" else FLOAT32
    x = (random(shape, FLOAT32, scale=2) + 1).astype(dtype)
    grad = random(shape, dtype, seed=1)
    weight, bias = random((channels,), of_weight, seed=2), random((channels,), of_weight, seed=3)
    out, mean, rstd = layer_forward(x, weight, bias, kernels)
    grad_x = np.empty_like(x)
    kernels.layer_norm_backward(grad, None, x, weight, mean, rstd, grad_x)
    grad_weight, grad_bias = np.empty(channels, np.float32), np.empty(channels, np.float32)
    kernels.layer_norm_backward_weight(
        grad[None], x[None], mean[None], rstd[None], False, grad_weight, grad_bias
    )
    expected = reference(x, weight, bias, grad, True)
    scale = expected[2].max(initial=1)
    assert_near(out, expected[0], 32, scale)
    assert_near(mean, expected[1], 8, 1)
    assert_near(rstd, expected[2], 4)
    assert_near(grad_x, expected[3], 32, scale)
    assert_near(grad_weight, expected[4], 16 + rows, 4 * scale)
    assert_near(grad_bias, expected[5], 1 + rows, 2)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(kernels, shape, dtype):
    rows, channels = shape
    x, grad = random(shape, dtype, scale=2), random(shape, dtype, seed=1)
    weight = random((channels,), FLOAT32, seed=2)
    out, grad_x, rstd = np.empty_like(x), np.empty_like(x), np.empty(rows, np.float32)
    kernels.rms_norm_forward(x, None, weight, EPSILON, None, out, rstd)
    kernels.rms_norm_backward(grad, None, x, weight, rstd, grad_x)
    grad_weight = np.empty(channels, np.float32)
    kernels.rms_norm_backward_weight(grad[None], x[None], rstd[None], False, grad_weight)
    expected = reference(x, weight, np.zeros(channels), grad, False)
    scale = expected[2].max(initial=1)
    assert_near(out, expected[0], 24, 1)
    assert_near(rstd, expected[2], 4)
    assert_near(grad_x, expected[3], 16, scale)
    assert_near(grad_weight, expected[4], 16 + rows, 4)


def test_a_large_mean_does_not_spoil_the_variance(kernels):
    x = random((4, 1000)) + np.float32(1000)
    weight, bias = np.ones(1000, np.float32), np.zeros(1000, np.float32)
    out, _, rstd = layer_forward(x, weight, bias, kernels)
    expected = reference(x, weight, bias, x, True)
    assert_near(rstd, expected[2], 4)
    assert_near(out, expected[0], 4, 1000)


def test_a_row_depends_on_no_other_row(kernels):
    x, weight, bias = random((9, 100)), random((100,), seed=1), random((100,), seed=2)
    out = layer_forward(x, weight, bias, kernels)[0]
    for row in range(9):
        one = layer_forward(x[row : row + 1], weight, bias, kernels)[0]
        assert bits(one) == bits(out[row])


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("channels", [1, 50, 130])
def test_weight_gradients_continue_their_chain(kernels, channels, dtype):
    """One call, pieces with accumulate and, on the CPU, a float32 chain in numpy: the same bits."""
    x, grad = random((5, 7, channels), dtype), random((5, 7, channels), dtype, seed=1)
    mean, rstd = random((5, 7), seed=2), random((5, 7), seed=3)
    whole = np.empty((2, channels), np.float32)
    kernels.layer_norm_backward_weight(grad, x, mean, rstd, False, whole[0], whole[1])
    pieces = np.full((2, channels), 3, np.float32)
    for i, part in enumerate([slice(0, 1), slice(1, 4), slice(4, 5)]):
        kernels.layer_norm_backward_weight(
            strided(grad)[part], strided(x)[part], mean[part], rstd[part], i > 0, *pieces
        )
    assert bits(pieces) == bits(whole)
    chain = np.zeros(channels, np.float32)
    for b in range(5):
        for s in range(7):
            chain += grad[b, s].astype(np.float32)
    if kernels is _cpu:
        assert bits(whole[1]) == bits(chain)
    assert_near(whole[1], wide(grad).sum((0, 1)), 35, 3)
    rms = np.empty(channels, np.float32)
    kernels.rms_norm_backward_weight(grad, x, rstd, False, rms)
    again = rms.copy()
    kernels.rms_norm_backward_weight(grad[2:2], x[2:2], rstd[2:2], True, again)
    assert bits(again) == bits(rms)
    kernels.rms_norm_backward_weight(grad[:2], x[:2], rstd[:2], False, again)
    kernels.rms_norm_backward_weight(grad[2:], x[2:], rstd[2:], True, again)
    assert bits(again) == bits(rms)


def test_weight_gradients_of_a_slice_of_positions(kernels):
    """Strided, statistics too: what a chunk of each sample's positions is."""
    x, grad = random((3, 10, 40)), random((3, 10, 40), seed=1)
    mean, rstd = random((3, 10), seed=2), random((3, 10), seed=3)
    view, copied = np.empty((2, 40), np.float32), np.empty((2, 40), np.float32)
    cut = (slice(None), slice(4, 9))
    arrays = [grad[cut], x[cut], mean[cut], rstd[cut]]
    kernels.layer_norm_backward_weight(*arrays, False, view[0], view[1])
    kernels.layer_norm_backward_weight(*[a.copy() for a in arrays], False, copied[0], copied[1])
    assert bits(view) == bits(copied)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("channels", [5, 150, 512])
def test_bits(channels, dtype):
    x, grad = random((37, channels), dtype), random((37, channels), dtype, seed=1)
    weight, bias = random((channels,), dtype, seed=2), random((channels,), dtype, seed=3)

    def call():
        out, mean, rstd = layer_forward(x, weight, bias)
        grad_x, sums = np.empty_like(x), np.empty((2, channels), np.float32)
        _cpu.layer_norm_backward(grad, None, x, weight, mean, rstd, grad_x)
        _cpu.layer_norm_backward_weight(
            grad[None], x[None], mean[None], rstd[None], False, sums[0], sums[1]
        )
        rms, rms_grad = np.empty_like(x), np.empty_like(x)
        _cpu.rms_norm_forward(x, None, weight, EPSILON, None, rms, rstd)
        _cpu.rms_norm_backward(grad, None, x, weight, rstd, rms_grad)
        return out, mean, grad_x, sums, rms, rms_grad

    assert_same_bits(call)


# In registers of 4, 12 and 16 pieces, in shared memory, from memory again; odd widths.
WIDTHS = [1, 2, 63, 64, 66, 200, 256, 258, 768, 770, 1024, 1026, 1600, 1601]


@pytest.mark.cuda
@pytest.mark.parametrize("dtypes", [(FLOAT32, FLOAT32), (BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16)])
@pytest.mark.parametrize("channels", WIDTHS)
def test_rows_have_the_cpus_bits(channels, dtypes):
    rows_have_the_cpus_bits((5, channels), *dtypes)


@pytest.mark.cuda
@pytest.mark.parametrize("channels", [4096, 8200, 8256, 16400])
def test_long_rows_have_the_cpus_bits(channels):
    rows_have_the_cpus_bits((1, channels), BFLOAT16 if channels > 8200 else FLOAT32, FLOAT32)


@pytest.mark.cuda
def test_unaligned_rows_have_the_cpus_bits():
    rows_have_the_cpus_bits((3, 130), BFLOAT16, BFLOAT16, 1)


def rows_have_the_cpus_bits(shape, dtype, of_weight, skip=0):
    def array(seed, *shape):
        flat = random((int(np.prod(shape)) + skip,), dtype if len(shape) > 1 else of_weight, seed)
        return flat[skip:].reshape(shape)

    rows, channels = shape
    x, grad = array(0, *shape), array(1, *shape)
    weight, bias = array(2, channels), array(3, channels)
    residual, grad_stream = array(4, *shape), array(5, *shape)

    def call(kernels):
        out, grad_x, rms, rms_grad = (np.full_like(array(0, *shape), 7) for _ in range(4))
        mean, rstd, rms_rstd = (np.empty(rows, np.float32) for _ in range(3))
        kernels.layer_norm_forward(x, None, weight, bias, EPSILON, None, out, mean, rstd)
        kernels.layer_norm_backward(grad, None, x, weight, mean, rstd, grad_x)
        kernels.rms_norm_forward(x, None, weight, EPSILON, None, rms, rms_rstd)
        kernels.rms_norm_backward(grad, None, x, weight, rms_rstd, rms_grad)
        plain = out, mean, rstd, grad_x, rms, rms_rstd, rms_grad
        return *plain, *fused(kernels, (x, residual), grad, grad_stream, weight, bias)

    assert_cpu_bits(call)


def fused(kernels, inputs, grad, grad_stream, weight, bias):
    """(stream, out, moments, gradient) of layer norm and RMS norm of the sum of two."""
    found, rows = [], len(grad)
    for name, parameters, moments in (("layer", (weight, bias), 2), ("rms", (weight,), 1)):
        stream, out, grad_x = (np.full(grad.shape, 7, grad.dtype) for _ in range(3))
        sums = [np.full(rows, 7, FLOAT32) for _ in range(moments)]
        getattr(kernels, f"{name}_norm_forward")(*inputs, *parameters, EPSILON, stream, out, *sums)
        getattr(kernels, f"{name}_norm_backward")(grad, grad_stream, stream, weight, *sums, grad_x)
        found += [stream, out, *sums, grad_x]
    return found


def apart(kernels, inputs, grad, grad_stream, weight, bias):
    """The same by add and the norms alone."""
    found, rows = [], len(grad)
    for name, parameters, moments in (("layer", (weight, bias), 2), ("rms", (weight,), 1)):
        stream, out, own, grad_x = (np.full(grad.shape, 7, grad.dtype) for _ in range(4))
        sums = [np.full(rows, 7, FLOAT32) for _ in range(moments)]
        kernels.add(list(inputs), stream)
        getattr(kernels, f"{name}_norm_forward")(
            stream, None, *parameters, EPSILON, None, out, *sums
        )
        getattr(kernels, f"{name}_norm_backward")(grad, None, stream, weight, *sums, own)
        kernels.add([grad_stream, own], grad_x)
        found += [stream, out, *sums, grad_x]
    return found


def two_uses(shape, dtype, of_weight):
    """inputs, grad, grad_stream, weight, bias; sums of either sign of zero among them."""
    x, y, grad, grad_stream = (random(shape, dtype, seed, 2) for seed in range(4))
    x.ravel()[::5] = y.ravel()[::5] = -0.0
    weight, bias = (random(shape[1:], of_weight, seed) for seed in (4, 5))
    return (x, y), grad, grad_stream, weight, bias


@pytest.mark.parametrize("weight_dtype", ["storage", "float32"])
@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 0)])
def test_rule_9_norm_of_a_residual_stream(kernels, shape, dtype, weight_dtype):
    """Forward has the bits of add and norm, backward those of norm and add."""
    arrays = two_uses(shape, dtype, dtype if weight_dtype == "storage" else FLOAT32)
    pairs = zip(fused(kernels, *arrays), apart(kernels, *arrays), strict=True)
    assert all(bits(x) == bits(y) for x, y in pairs)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("channels", [7, 66, 256, 1026, 8256, 16400])
def test_a_gradient_may_be_written_over_that_of_the_stream(kernels, channels, dtype):
    inputs, grad, grad_stream, weight, _ = two_uses((3, channels), dtype, dtype)
    mean, rstd = random((3,), seed=6), np.abs(random((3,), seed=7))
    for name, moments in (("layer", (mean, rstd)), ("rms", (rstd,))):
        kernel = getattr(kernels, f"{name}_norm_backward")
        grad_x, over = np.empty_like(grad), grad_stream.copy()
        kernel(grad, grad_stream, inputs[0], weight, *moments, grad_x)
        kernel(grad, over, inputs[0], weight, *moments, over)
        assert bits(over) == bits(grad_x)


@pytest.mark.cuda
@pytest.mark.parametrize("odd", range(4))
def test_one_unaligned_array_of_a_residual_stream(odd):
    """The inputs, or a gradient, or an output, one element off."""
    inputs, grad, grad_stream, weight, _ = two_uses((3, 130), BFLOAT16, BFLOAT16)

    def off(x):
        holder = np.empty(x.size + 1, x.dtype)
        holder[1:] = x.ravel()
        return holder[1:].reshape(x.shape)

    def call(kernels):
        (x, y), beside = inputs, off(grad_stream) if odd == 3 else grad_stream
        x, y = off(x) if odd == 0 else x, off(y) if odd == 1 else y
        stream, out, grad_x = (np.full_like(x, 7) for _ in range(3))
        stream, rstd = off(stream) if odd == 2 else stream, np.empty(3, FLOAT32)
        kernels.rms_norm_forward(x, y, weight, EPSILON, stream, out, rstd)
        kernels.rms_norm_backward(grad, beside, stream.copy(), weight, rstd, grad_x)
        return stream, out, grad_x

    assert_cpu_bits(call)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("channels", [5, 150, 512])
def test_bits_of_a_residual_stream(channels, dtype):
    arrays = two_uses((37, channels), dtype, dtype)
    assert_same_bits(lambda: fused(_cpu, *arrays))


def test_nan_stays_in_its_row(kernels):
    x = random((3, 40))
    x[1, 7] = np.nan
    out, _, _ = layer_forward(x, np.ones(40, np.float32), np.zeros(40, np.float32), kernels)
    assert np.all(np.isnan(out[1]))
    assert np.all(np.isfinite(out[[0, 2]]))


def test_errors_name_the_argument(kernels):
    x, weight = np.zeros((2, 4), np.float32), np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"weight is \(3,\) float32, expected \(4,\)"):
        layer_forward(x, weight, weight, kernels)
    with pytest.raises(ValueError, match="not contiguous"):
        layer_forward(random((2, 8))[:, ::2], random((4,)), random((4,)), kernels)
    weight, other, rstd = np.zeros(4, np.float32), np.zeros((2, 3), np.float32), x[:, 0].copy()
    for y, stream, message in (
        (x, None, "rms_norm_forward: residual is given without stream: give both or neither"),
        (None, x, "rms_norm_forward: stream is given without residual: give both or neither"),
        (other, x, r"residual is \(2, 3\) float32, expected \(2, 4\)"),
        (x, other, r"stream is \(2, 3\) float32, expected \(2, 4\)"),
        (x, x.astype(BFLOAT16), "stream is .* bfloat16, expected float32"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.rms_norm_forward(x, y, weight, EPSILON, stream, x.copy(), rstd)
    with pytest.raises(ValueError, match=r"grad_stream is \(2, 3\) float32, expected \(2, 4\)"):
        kernels.rms_norm_backward(x, other, x, weight, rstd, x.copy())
