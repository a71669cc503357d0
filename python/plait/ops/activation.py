"""Elementwise functions, dropout and the residual add."""

from __future__ import annotations

import itertools
from typing import Any

from plait.autograd import Context, Function, Tensor
from plait.backend import Array, empty, kernels
from plait.comm import Communicator
from plait.ops.sums import fan_in


class GELU(Function):
    """The tanh form of Hendrycks and Gimpel (2016), as in GPT-2."""

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        ctx.save(x)
        out = empty(x.shape, x.dtype)
        kernels.gelu_forward(x, out)
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (x,) = ctx.saved
        grad_x = empty(x.shape, x.dtype)
        kernels.gelu_backward(grad, x, grad_x)
        return grad_x


class ReLU(Function):
    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        out = empty(x.shape, x.dtype)
        kernels.relu_forward(x, out)
        ctx.save(out)
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (out,) = ctx.saved
        grad_x = empty(out.shape, out.dtype)
        kernels.relu_backward(grad, out, grad_x)
        return grad_x


class SwiGLU(Function):
    """x (B, S, 2 F), per tensor leaf [gate, up] (Shazeer 2020) -> silu(gate) * up (B, S, F).

    leaf_rows: where the columns of x are cut into leaves."""

    @staticmethod
    def forward(ctx: Context, x: Array, leaf_rows: tuple[int, ...]) -> Array:
        ctx.save(x, leaf_rows)
        out = empty((*x.shape[:-1], x.shape[-1] // 2), x.dtype)
        for gate, up, column in _halves(leaf_rows):
            kernels.swiglu_forward(x[..., gate], x[..., up], out[..., column])
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        x, leaf_rows = ctx.saved
        grad_x = empty(x.shape, x.dtype)
        for gate, up, column in _halves(leaf_rows):
            kernels.swiglu_backward(
                grad[..., column], x[..., gate], x[..., up], grad_x[..., gate], grad_x[..., up]
            )
        return grad_x


def _halves(leaf_rows: tuple[int, ...]) -> list[tuple[slice, slice, slice]]:
    parts = []
    for start, stop in itertools.pairwise(leaf_rows):
        middle = (start + stop) // 2
        parts.append((slice(start, middle), slice(middle, stop), slice(start // 2, stop // 2)))
    return parts


class Dropout(Function):
    """Each element is kept with probability 1 - p, a function of (seed, step, layer, global
    index)."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, probability: float, layer: int, comm: Communicator
    ) -> Array:
        position = ctx.position
        first = comm.leaves.cut(position.sequence, comm.rank)[0] if position.sequence else 0
        ctx.save(probability, layer, first)
        return _dropout(x, position, probability, layer, first)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        return _dropout(grad, ctx.position, *ctx.saved)


def _dropout(x: Array, position: Any, probability: float, layer: int, first: int) -> Array:
    out = empty(x.shape, x.dtype)
    kernels.dropout(
        x, probability, position.seed, position.step, layer, position.first_sample, first, out
    )
    return out


def dropout(
    x: Tensor, probability: float, layer: int, comm: Communicator, training: bool
) -> Tensor:
    """x itself in evaluation or at probability 0. `layer` names the dropout in the model."""
    if not training or probability == 0.0:
        return x
    result: Tensor = Dropout.apply(x, probability, layer, comm)
    return result


class Add(Function):
    """x + y, rounded once: the residual connection."""

    @staticmethod
    def forward(ctx: Context, x: Array, y: Array) -> Array:
        return fan_in((x, y))

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array, Array]:
        return grad, grad
