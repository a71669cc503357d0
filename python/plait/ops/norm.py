"""Layer norm (Ba et al. 2016) and RMS norm (Zhang and Sennrich 2019) over the last axis;
replicated weights.

Each has two forms: norm(x), and for a residual stream (x + y, norm(x + y)), where y may be left
out. The second gives the bits of ops.Add and the first in one pass over memory, in backward too,
where both gradients of the stream meet.
"""

from __future__ import annotations

from typing import Any

from plait.autograd import Context, Function
from plait.backend import Array, contiguous, empty, kernels
from plait.comm import Communicator
from plait.comm.after import Norm, normed
from plait.ops.linear import flat
from plait.ops.parameter import Parameter
from plait.ops.position import Position
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
        return _forward(ctx, x, None, weight, bias, comm, epsilon)[1]

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array | None:
        return norm_backward(ctx.position, None, grad, *ctx.saved)


class RMSNorm(Function):
    """x (B, S, C): x / sqrt(mean(x^2) + epsilon) * weight."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Parameter, comm: Communicator, epsilon: float = 1e-5
    ) -> Array:
        return _forward(ctx, x, None, weight, None, comm, epsilon)[1]

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array | None:
        return norm_backward(ctx.position, None, grad, *ctx.saved)


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
        return _forward(ctx, x, y, weight, bias, comm, epsilon)

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
        return _forward(ctx, x, y, weight, None, comm, epsilon)

    @staticmethod
    def backward(ctx: Context, grad_stream: Array | None, grad: Array | None) -> Any:
        return _backward_residual(ctx, grad_stream, grad)


def norm_of(weight: Parameter, bias: Parameter | None, epsilon: float) -> Norm:
    return Norm(weight.array, None if bias is None else bias.array, epsilon)


def _forward(
    ctx: Context, x: Array, y: Array | None, weight: Parameter, bias: Parameter | None,
    comm: Communicator, epsilon: float,
) -> tuple[Array, Array]:  # fmt: skip
    """The stream and its norm."""
    found = normed(x, y, norm_of(weight, bias, epsilon))
    ctx.save(found.stream, found.statistics, weight, bias, comm)
    return found.stream, found.normed


def norm_backward(
    position: Position, grad_stream: Array | None, grad: Array | None, x: Array,
    statistics: list[Array], weight: Parameter, bias: Parameter | None, comm: Communicator,
) -> Array | None:  # fmt: skip
    """The gradient of x, what was normed. Where the norm was not used its weights get nothing, as
    where a Function's backward is not called."""
    if grad is None:
        return grad_stream
    kind = "rms" if bias is None else "layer"
    grad_x = empty(x.shape, x.dtype)
    getattr(kernels, f"{kind}_norm_backward")(
        _rows(grad), None if grad_stream is None else _rows(grad_stream), _rows(x), weight.array,
        *(s.ravel() for s in statistics), flat(grad_x),
    )  # fmt: skip
    parameters = [weight] if bias is None else [weight, bias]
    chunks = position_chunks(comm, position, x.shape[1])
    for each in zip(*(p.segments(position) for p in parameters), strict=True):
        segment, sums = each[0][0], [total for _, total in each]
        for leaf, chunk in enumerate(chunks):
            where = segment.samples, chunk
            getattr(kernels, f"{kind}_norm_backward_weight")(
                grad[where], x[where], *(s[where] for s in statistics), not segment.begins,
                *(total[leaf] for total in sums),
            )  # fmt: skip
    return grad_x


def _rows(x: Array) -> Array:
    return flat(contiguous(x))


def _backward_residual(
    ctx: Context, grad_stream: Array | None, grad: Array | None
) -> tuple[Array | None, ...]:
    """The same for each input."""
    grad_x = norm_backward(ctx.position, grad_stream, grad, *ctx.saved)
    return (grad_x,) * len(ctx.needs_input_grad)
