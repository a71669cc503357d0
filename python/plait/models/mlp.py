"""A multi-layer perceptron over flattened inputs: pairs of column and row parallel layers with
residuals."""

from __future__ import annotations

import math

from plait import nn
from plait.autograd import Context, Function, Tensor
from plait.backend import Array
from plait.nn import Build, LayerSpec


class Flatten(Function):
    """(B, ...) -> (B, 1, features): each sample is a sequence of one position."""

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        ctx.save(x.shape)
        return x.reshape(len(x), 1, -1)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        return grad.reshape(ctx.saved[0])


class Pair(nn.Layer):
    """inputs -> hidden (column parallel) -> GELU -> outputs (row parallel)."""

    def __init__(self, build: Build, inputs: int, hidden: int, outputs: int):
        self.up = nn.ColumnLinear(build.at("up"), inputs, hidden, std=math.sqrt(2 / inputs))
        self.down = nn.RowLinear(build.at("down"), hidden, outputs, std=math.sqrt(1 / hidden))

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.down(*self.up.gelu(x), residual=residual)


class First(nn.Layer):
    def __init__(self, build: Build, inputs: int, hidden: int, outputs: int):
        self.pair = Pair(build, inputs, hidden, outputs)

    def __call__(self, x: Tensor) -> Tensor:
        return self.pair(Flatten.apply(x))


class Residual(nn.Layer):
    def __init__(self, build: Build, size: int, hidden: int):
        self.norm = nn.LayerNorm(build.at("norm"), size)
        self.pair = Pair(build, size, hidden, size)

    def __call__(self, x: Tensor) -> Tensor:
        x, n = self.norm.residual(x)
        return self.pair(n, residual=x)


def mlp(
    *, input_shape: tuple[int, ...], classes: int, hidden_dim: int, layers: int = 2
) -> list[LayerSpec]:
    """`layers` pairs of width hidden_dim; inputs of any shape are flattened."""
    inputs = 1
    for size in input_shape:
        inputs *= size
    c = hidden_dim
    specs = [
        LayerSpec(
            "layers.0",
            lambda build: First(build, inputs, c, c),
            parameters=inputs * c + c * c + 2 * c,
            flops=2 * (inputs * c + c * c),
            activation=inputs + 3 * c,
            output=c,
        )
    ]
    specs += [
        LayerSpec(
            f"layers.{index}",
            lambda build: Residual(build, c, c),
            parameters=2 * c * c + 4 * c,
            flops=4 * c * c,
            activation=5 * c,
            output=c,
        )
        for index in range(1, layers)
    ]
    specs.append(
        LayerSpec(
            "head",
            lambda build: nn.Head(build, c, classes, std=math.sqrt(1 / c)),
            parameters=c * classes,
            flops=2 * c * classes,
            activation=c + classes,
            output=c,
        )
    )
    return specs
