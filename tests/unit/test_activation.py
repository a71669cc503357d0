"""GELU, ReLU, SwiGLU against float64; error bounds in float32 units of the largest term."""

import numpy as np
import pytest
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

SHAPES = [(0,), (1,), (17,), (3, 0), (5, 31), (2, 3, 64), (3, 20000), (2, 2, 3, 5)]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: np.ndarray) -> np.ndarray:
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def silu_slope(x: np.ndarray) -> np.ndarray:
    return sigmoid(x) * (1 + x * sigmoid(-x))


def like(x: np.ndarray) -> np.ndarray:
    return np.full_like(x, 9)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("shape", SHAPES)
def test_gelu(shape, dtype):
    x, grad = random(shape, dtype, scale=3), random(shape, dtype, seed=1)
    out, grad_x = like(x), like(x)
    _cpu.gelu_forward(x, out)
    _cpu.gelu_backward(grad, x, grad_x)
    assert_near(out, gelu(wide(x)), 16, 1e-3)
    assert_near(grad_x, wide(grad) * gelu_slope(wide(x)), 8, np.abs(wide(grad)))


def test_gelu_extremes():
    x = np.array([-1e38, -1e20, -100, -30, -9, 0, 9, 30, 100, 1e20, 1e38, np.nan], np.float32)
    out, grad_x = like(x), like(x)
    _cpu.gelu_forward(x, out)
    _cpu.gelu_backward(np.ones_like(x), x, grad_x)
    assert np.all(out[:4] == 0)
    assert out[5] == 0
    assert np.array_equal(out[6:11], x[6:11])
    assert np.all(grad_x[:4] == 0)
    assert grad_x[5] == 0.5
    assert np.all(grad_x[7:11] == 1)
    assert np.isnan(out[11])
    assert np.isnan(grad_x[11])


def test_gelu_tail_keeps_relative_accuracy():
    x = np.linspace(-6, -2, 1000).astype(np.float32)
    out = like(x)
    _cpu.gelu_forward(x, out)
    z = np.sqrt(2 / np.pi) * (wide(x) + 0.044715 * wide(x) ** 3)
    assert_near(out, wide(x) / (1 + np.exp(-2 * z)), 100, 0.0)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("shape", SHAPES)
def test_relu(shape, dtype):
    x, grad = random(shape, dtype), random(shape, dtype, seed=1)
    out, grad_x = like(x), like(x)
    _cpu.relu_forward(x, out)
    _cpu.relu_backward(grad, out, grad_x)
    assert np.array_equal(out, np.maximum(x, 0))
    assert np.array_equal(grad_x, np.where(x > 0, grad, np.zeros_like(grad)))


def test_relu_passes_nan():
    x = np.array([np.nan, -np.inf, np.inf, -0.0], np.float32)
    out, grad_x = like(x), like(x)
    _cpu.relu_forward(x, out)
    _cpu.relu_backward(np.ones_like(x), out, grad_x)
    assert np.isnan(out[0])
    assert bits(out[1:]) == bits(np.array([0, np.inf, 0], np.float32))
    assert np.array_equal(grad_x, [1, 0, 1, 0])


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu(shape, dtype):
    gate, up = random(shape, dtype, scale=3), random(shape, dtype, seed=1)
    grad = random(shape, dtype, seed=2)
    out, grad_gate, grad_up = like(gate), like(gate), like(gate)
    _cpu.swiglu_forward(gate, up, out)
    _cpu.swiglu_backward(grad, gate, up, grad_gate, grad_up)
    g, u, d = wide(gate), wide(up), wide(grad)
    assert_near(out, g * sigmoid(g) * u, 16, 1e-3)
    assert_near(grad_gate, d * u * silu_slope(g), 8, np.abs(d * u))
    assert_near(grad_up, d * g * sigmoid(g), 16, 1e-3)


def test_swiglu_extremes():
    gate = np.array([-1e38, -100, 0, 100, 1e38, np.nan], np.float32)
    up = np.ones_like(gate)
    out, grad_gate, grad_up = like(gate), like(gate), like(gate)
    _cpu.swiglu_forward(gate, up, out)
    _cpu.swiglu_backward(up, gate, up, grad_gate, grad_up)
    expected = np.array([0, 0, 0, 100, 1e38, np.nan], np.float32)
    assert np.array_equal(np.abs(out), expected, equal_nan=True)
    assert np.array_equal(np.abs(grad_up), expected, equal_nan=True)
    assert np.array_equal(np.abs(grad_gate), [0, 0, 0.5, 1, 1, np.nan], equal_nan=True)


@pytest.mark.parametrize("dtype", STORAGE)
def test_strided_views_give_the_bits_of_contiguous_arrays(dtype):
    shape = (3, 5, 37)
    gate, up, grad = (random(shape, dtype, seed=i) for i in range(3))
    calls = [
        (_cpu.gelu_forward, [gate], 1),
        (_cpu.gelu_backward, [grad, gate], 1),
        (_cpu.relu_forward, [gate], 1),
        (_cpu.relu_backward, [grad, np.maximum(gate, 0)], 1),
        (_cpu.swiglu_forward, [gate, up], 1),
        (_cpu.swiglu_backward, [grad, gate, up], 2),
    ]
    for op, inputs, outputs in calls:
        plain = [like(gate) for _ in range(outputs)]
        views = [strided(like(gate)) for _ in range(outputs)]
        op(*inputs, *plain)
        op(*[strided(x) for x in inputs], *views)
        for a, b in zip(plain, views, strict=True):
            assert bits(a) == bits(b), op
            gaps = b.base.size - b.size
            assert np.count_nonzero(wide(b.base) == 7) >= gaps  # they are untouched


def test_fused_halves_are_views():
    both = random((4, 6, 50))
    gate, up = both[..., :25], both[..., 25:]
    out = np.empty((4, 6, 25), np.float32)
    _cpu.swiglu_forward(gate, up, out)
    assert_near(out, wide(gate) * sigmoid(wide(gate)) * wide(up), 16, 1e-3)


@pytest.mark.parametrize("dtype", STORAGE)
def test_bits(dtype):
    x, grad, up = (random((7, 10007), dtype, seed=i, scale=4) for i in range(3))

    def call():
        out = [like(x) for _ in range(5)]
        _cpu.gelu_forward(x, out[0])
        _cpu.gelu_backward(grad, x, out[1])
        _cpu.swiglu_forward(x, up, out[2])
        _cpu.swiglu_backward(grad, x, up, out[3], out[4])
        return out

    assert_same_bits(call)


def test_errors_name_the_arrays():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"gelu_forward.*\(2, 3\) float32 and \(3, 2\) float32"):
        _cpu.gelu_forward(x, np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"float32 and \(2, 3\) bfloat16"):
        _cpu.gelu_forward(x, x.astype(BFLOAT16))
    with pytest.raises(ValueError, match="stride 2 along its last axis"):
        _cpu.gelu_forward(np.zeros((2, 6), np.float32)[:, ::2], x)
    with pytest.raises(ValueError, match="int32"):
        _cpu.relu_forward(x.astype(np.int32), x.astype(np.int32))
    assert x.dtype == FLOAT32


def test_a_last_axis_of_length_one_may_have_any_stride() -> None:
    x = random((6, 4))
    for view in (x[:, :1], x[::-1, 2:3], x.T[:, 1:2]):
        holder = np.full((len(view), 3), 7.0, np.float32)
        _cpu.relu_forward(view, holder[:, 1:2])
        np.testing.assert_array_equal(holder[:, 1:2], np.maximum(view, 0))
        assert (holder[:, [0, 2]] == 7.0).all()
