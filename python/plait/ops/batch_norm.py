"""Batch norm (Ioffe and Szegedy 2015) over all axes but the last.

Training uses the statistics of the microbatch, evaluation the running ones. Those change once a
step: backward adds each microbatch's statistics, times its samples, into the accumulation buffers
of two parameters that no optimizer touches (Parameter.momentum), data leaf by data leaf like any
gradient. So running statistics have the same bits at every layout with the same microbatches, and
running a layer again in backward does not count them twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from plait.autograd import Context, Function
from plait.backend import Array, empty, fill, kernels
from plait.comm import Communicator
from plait.ops.linear import flat
from plait.ops.parameter import Parameter
from plait.ops.position import Position, Segment
from plait.ops.sums import position_chunks


class BatchNorm(Function):
    """x (B, ..., C): (x - mean) / sqrt(variance + epsilon) * weight + bias, per channel.

    The four parameters are (C,), all split over the tensor axis as x's channels are, or all
    replicated."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        weight: Parameter,
        bias: Parameter,
        running_mean: Parameter,
        running_variance: Parameter,
        comm: Communicator,
        epsilon: float = 1e-5,
    ) -> Array:
        training = ctx.position.training
        mean, variance = running_mean.array, running_variance.array
        if training:
            mean, variance = empty(x.shape[-1]), empty(x.shape[-1])
        out = empty(x.shape, x.dtype)
        kernels.batch_norm_forward(
            flat(x), weight.array, bias.array, epsilon, training, mean, variance, flat(out)
        )
        parameters = weight, bias, running_mean, running_variance
        ctx.save(x, parameters, comm, epsilon, mean, variance)
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        x, parameters, comm, epsilon, mean, variance = ctx.saved
        position = ctx.position
        assert position.training, "gradients go through the statistics of a microbatch"
        weight, bias, running_mean, running_variance = parameters
        samples, channels = len(x), x.shape[-1]
        grad_x = empty(x.shape, x.dtype)
        kernels.batch_norm_backward(
            flat(grad), flat(x), weight.array, mean, variance, epsilon, flat(grad_x)
        )
        rows = x.size // max(channels, 1)
        x, grad = (a.reshape(samples, rows // samples, channels) for a in (x, grad))
        chunks = [slice(None)]
        if weight.replicated:
            chunks = position_chunks(comm, position, x.shape[1])
        totals = zip(leaf_chains(weight, position), leaf_chains(bias, position), strict=True)
        for (segment, grad_weights), (_, grad_biases) in totals:
            for chunk, grad_weight, grad_bias in zip(
                chunks, grad_weights, grad_biases, strict=True
            ):
                where = segment.samples, chunk
                kernels.batch_norm_backward_weight(
                    grad[where], x[where], mean, variance, epsilon, not segment.begins,
                    grad_weight, grad_bias,
                )  # fmt: skip
        add_statistic(running_mean, position, mean, 1.0, comm)
        add_statistic(running_variance, position, variance, rows / max(rows - 1, 1), comm)
        return grad_x


def leaf_chains(parameter: Parameter, position: Position) -> Iterator[tuple[Segment, Array]]:
    """As segments, with an axis of this rank's tensor leaves for split parameters too: one."""
    for segment, grad in parameter.segments(position):
        yield segment, grad if parameter.replicated else grad[None]


def add_statistic(
    parameter: Parameter, position: Position, value: Array, factor: float, comm: Communicator
) -> None:
    """Adds samples x (value x factor) to each data leaf. Of a replicated parameter every rank has
    the same value: the first tensor leaf counts it, the others hold zero."""
    for segment, grads in leaf_chains(parameter, position):
        if segment.begins:
            fill(grads, 0)
        if not parameter.replicated or comm.rank == 0:
            samples = segment.samples.stop - segment.samples.start
            kernels.add_statistic(value, factor, samples, not segment.begins, grads[0])
