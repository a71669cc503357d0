"""conv2d of both backends against float64; bits that leaves, samples and channels leave alone."""

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
    reference,
    same_bits,
)
from kernel_backends import in_orders

from plait import _cpu

WIDER = [Shape(2, 9, 7, 16, 72, 3, 3, 1, 1), Shape(1, 11, 9, 72, 8, 3, 3, 2, 1)]


@pytest.mark.parametrize("input_first", [False, True])
@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
def test_close_to_float64(kernels, input_first, dtype):
    for shape in SHAPES + WIDER:
        x, weight, grad = operands(shape, input_first, dtype)
        got = (
            forward(x, weight, shape, input_first, kernels=kernels),
            backward(grad, weight, shape, input_first, kernels=kernels),
            backward_weight(grad, x, shape, input_first, kernels=kernels),
        )
        exact = reference(x, weight, grad, shape, input_first)
        scale = reference(abs(x), abs(weight), abs(grad), shape, input_first)
        for g, e, s in zip(got, exact, scale, strict=True):
            rounding = 2.0**-8 if g.dtype == bfloat16 else 0.0
            bound = 1e-5 * s + rounding * abs(e) + 1e-30
            worst = np.abs(np.asarray(g, np.float64) - e) - bound
            assert worst.size == 0 or worst.max() <= 0, (shape, g.dtype)


@pytest.mark.parametrize("input_first", [False, True])
def test_float32_has_the_bits_of_the_cpu(kernels, input_first):
    for shape in SHAPES:
        x, weight, grad = operands(shape, input_first)
        calls = [
            lambda k, x=x, w=weight, s=shape: forward(x, w, s, input_first, kernels=k),
            lambda k, g=grad, w=weight, s=shape: backward(g, w, s, input_first, kernels=k),
            lambda k, g=grad, x=x, s=shape: backward_weight(g, x, s, input_first, kernels=k),
        ]
        for call in calls:
            same_bits(call(kernels), call(_cpu))


@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
@pytest.mark.parametrize("leaves", [[0, 24], [0, 7, 24], [0, 5, 5, 24], [0, 8, 16, 24]])
def test_leaves_are_merged_by_the_tree(kernels, dtype, leaves):
    shape = Shape(2, 7, 6, 24, 5, 3, 3, 2, 1)
    x, weight, _ = operands(shape, True, dtype)
    parts = [
        forward(
            x[..., a:b], weight[a:b], shape._replace(i=b - a), True, dtype=float32, kernels=kernels
        )
        for a, b in pairwise(leaves)
    ]
    got = forward(x, weight, shape, True, leaves, kernels=kernels)
    same_bits(got, by_tree(parts).astype(dtype))
    shape = Shape(2, 7, 6, 5, 24, 3, 3, 2, 1)
    _, weight, grad = operands(shape, False, dtype)
    parts = [
        backward(
            grad[..., a:b], weight[a:b], shape._replace(o=b - a), False, dtype=float32,
            kernels=kernels,
        )
        for a, b in pairwise(leaves)
    ]  # fmt: skip
    got = backward(grad, weight, shape, False, leaves, kernels=kernels)
    same_bits(got, by_tree(parts).astype(dtype))


@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
@pytest.mark.parametrize("input_first", [False, True])
def test_grad_weight_continues_sample_by_sample(kernels, dtype, input_first):
    for shape in [*SHAPES[1:5], Shape(3, 9, 7, 24, 40, 3, 3, 1, 1)]:
        x, _, grad = operands(shape, input_first, dtype)
        whole = backward_weight(grad, x, shape, input_first, kernels=kernels)
        parts = backward_weight(grad[:1], x[:1], shape, input_first, kernels=kernels)
        for b in range(1, len(x)):
            sample = slice(b, b + 1)
            parts = backward_weight(grad[sample], x[sample], shape, input_first, parts, kernels)
        same_bits(parts, whole)


@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
@pytest.mark.parametrize("input_first", [False, True])
def test_stack_of_weight_gradients(kernels, dtype, input_first):
    """Leaves of samples: merged within the call, with a slot of before, and left apart."""
    shape = Shape(5, 5, 4, 6, 10, 3, 3, 1, 1)
    x, _, grad = operands(shape, input_first, dtype)
    leaves, merges = [0, 1, 3, 3, 4, 5], [1, 0, 1, 0, 1]
    stack = np.random.default_rng(0).standard_normal((3, *shape.weight(input_first)))
    stack = stack.astype(float32)
    parts = [
        backward_weight(grad[a:b], x[a:b], shape, input_first, kernels=kernels)
        for a, b in pairwise(leaves)
    ]
    expected = [stack[0] + parts[0], parts[1] + parts[2], parts[3] + parts[4]]
    kernels.conv2d_backward_weight(
        grad, x, input_first, shape.stride, shape.padding, leaves, merges, 1, False, stack
    )
    for got, right in zip(stack, expected, strict=True):
        same_bits(got, right)


@pytest.mark.parametrize("dtype", [float32, bfloat16], ids=str)
def test_bits_do_not_depend_on_batch_or_sharding(kernels, dtype):
    shape = Shape(3, 8, 7, 24, 70, 3, 3, 1, 1)
    x, weight, grad = operands(shape, False, dtype)
    out = forward(x, weight, shape, False, kernels=kernels)
    grad_x = backward(grad, weight, shape, False, kernels=kernels)
    grad_weight = backward_weight(grad, x, shape, False, kernels=kernels)
    same_bits(forward(x[1:2], weight, shape, False, kernels=kernels), out[1:2])
    same_bits(backward(grad[1:2], weight, shape, False, kernels=kernels), grad_x[1:2])
    part = shape._replace(o=35)
    same_bits(forward(x, weight[35:], part, False, kernels=kernels), out[..., 35:])
    some = backward_weight(grad[..., 35:], x, part, False, kernels=kernels)
    same_bits(some, grad_weight[35:])


def test_order_of_threads(kernels):
    shape = Shape(3, 8, 7, 16, 70, 3, 3, 1, 1)
    x, weight, grad = operands(shape, False, bfloat16)

    def call():
        return (
            forward(x, weight, shape, False, kernels=kernels),
            backward(grad, weight, shape, False, kernels=kernels),
            backward_weight(grad, x, shape, False, kernels=kernels),
        )

    results = in_orders(kernels, call)
    for result in results[1:]:
        for got, first in zip(result, results[0], strict=True):
            same_bits(got, first)
