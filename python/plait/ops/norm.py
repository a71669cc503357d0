"""Layer norm (Ba et al. 2016) and RMS norm (Zhang and Sennrich 2019) over the last axis;
replicated weights.

Each has two forms: norm(x), and for a residual stream (x + y, norm(x + y)), where y may be left
out. The second gives the bits of ops.Add and the first in one pass over memory, in backward too,
where both gradients of the stream meet.
"""

from __future__ import annotations

from typing import Any

from plait.autograd import Context, Function
from plait.backend import Array, contiguous, empty, float32, kernels
from plait.comm import Communicator
from plait.ops.linear import flat
from plait.ops.parameter import Parameter
from plait.ops.sums import position_chunks


class LayerNorm(Function):
    """x (B, S, C): (x - mean) / sqrt(variance + epsilon) * weight + bias."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        weight: Parameter,
        bias: Parameter,
        comm: Communicator,
        epsilon: float = 1e-5,
    ) -> Array:
        return _forward(ctx, x, None, (weight, bias), comm, epsilon)[1]

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        return _backward(ctx, None, grad)


class RMSNorm(Function):
    """x (B, S, C): x / sqrt(mean(x^2) + epsilon) * weight."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Parameter, comm: Communicator, epsilon: float = 1e-5
    ) -> Array:
        return _forward(ctx, x, None, (weight,), comm, epsilon)[1]

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        return _backward(ctx, None, grad)


class ResidualLayerNorm(Function):
    """x, y (B, S, C) -> the stream x + y, or x where y is None, and its layer norm."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        y: Array | None,
        weight: Parameter,
        bias: Parameter,
        comm: Communicator,
        epsilon: float = 1e-5,
    ) -> tuple[Array, Array]:
        return _forward(ctx, x, y, (weight, bias), comm, epsilon)

    @staticmethod
    def backward(ctx: Context, grad_stream: Array | None, grad: Array | None) -> Any:
        return _backward_residual(ctx, grad_stream, grad)


class ResidualRMSNorm(Function):
    """x, y (B, S, C) -> the stream x + y, or x where y is None, and its RMS norm."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        y: Array | None,
        weight: Parameter,
        comm: Communicator,
        epsilon: float = 1e-5,
    ) -> tuple[Array, Array]:
        return _forward(ctx, x, y, (weight,), comm, epsilon)

    @staticmethod
    def backward(ctx: Context, grad_stream: Array | None, grad: Array | None) -> Any:
        return _backward_residual(ctx, grad_stream, grad)


# A layer norm has weight and bias, mean and rstd; an RMS norm has weight and rstd.


def _kernel(parameters: tuple[Parameter, ...], part: str) -> Any:
    return getattr(kernels, f"{'layer' if len(parameters) == 2 else 'rms'}_norm_{part}")


def _rows(x: Array | None) -> Array | None:
    return None if x is None else flat(contiguous(x))


def _forward(
    ctx: Context,
    x: Array,
    y: Array | None,
    parameters: tuple[Parameter, ...],
    comm: Communicator,
    epsilon: float,
) -> tuple[Array, Array]:
    """The stream and its norm."""
    stream = x if y is None else empty(x.shape, x.dtype)
    out, statistics = empty(x.shape, x.dtype), [empty(x.shape[:-1], float32) for _ in parameters]
    _kernel(parameters, "forward")(
        _rows(x), _rows(y), *(p.array for p in parameters), epsilon,
        None if y is None else flat(stream), flat(out), *(s.ravel() for s in statistics),
    )  # fmt: skip
    ctx.save(stream, parameters, comm, statistics)
    return stream, out


def _backward(ctx: Context, grad_stream: Array | None, grad: Array) -> Array:
    x, parameters, comm, statistics = ctx.saved
    grad_x = empty(x.shape, x.dtype)
    _kernel(parameters, "backward")(
        _rows(grad), _rows(grad_stream), _rows(x), parameters[0].array,
        *(s.ravel() for s in statistics), flat(grad_x),
    )  # fmt: skip
    chunks = position_chunks(comm, ctx.position, x.shape[1])
    for each in zip(*(p.segments(ctx.position) for p in parameters), strict=True):
        segment, sums = each[0][0], [total for _, total in each]
        for leaf, chunk in enumerate(chunks):
            where = segment.samples, chunk
            _kernel(parameters, "backward_weight")(
                grad[where], x[where], *(s[where] for s in statistics), not segment.begins,
                *(total[leaf] for total in sums),
            )  # fmt: skip
    return grad_x


def _backward_residual(
    ctx: Context, grad_stream: Array | None, grad: Array | None
) -> tuple[Array | None, ...]:
    """The same for each input. Where the norm was not used its weights get nothing, as where a
    Function's backward is not called."""
    grad_x = grad_stream if grad is None else _backward(ctx, grad_stream, grad)
    return (grad_x,) * len(ctx.needs_input_grad)
