"""Layer norm (Ba et al. 2016) and RMS norm (Zhang and Sennrich 2019) over the last axis;
replicated weights."""

from __future__ import annotations

from plait.autograd import Context, Function
from plait.backend import Array, empty, float32, kernels
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
        out, mean, rstd = empty(x.shape, x.dtype), empty(x.shape[:-1]), empty(x.shape[:-1])
        kernels.layer_norm_forward(
            flat(x), weight.array, bias.array, epsilon, flat(out), mean.ravel(), rstd.ravel()
        )
        ctx.save(x, weight, bias, comm, mean, rstd)
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        x, weight, bias, comm, mean, rstd = ctx.saved
        grad_x = empty(x.shape, x.dtype)
        kernels.layer_norm_backward(
            flat(grad), flat(x), weight.array, mean.ravel(), rstd.ravel(), flat(grad_x)
        )
        chunks = position_chunks(comm, ctx.position, x.shape[1])
        pairs = zip(weight.segments(ctx.position), bias.segments(ctx.position), strict=True)
        for (segment, grad_weight), (_, grad_bias) in pairs:
            for leaf, chunk in enumerate(chunks):
                where = segment.samples, chunk
                kernels.layer_norm_backward_weight(
                    grad[where], x[where], mean[where], rstd[where], not segment.begins,
                    grad_weight[leaf], grad_bias[leaf],
                )  # fmt: skip
        return grad_x


class RMSNorm(Function):
    """x (B, S, C): x / sqrt(mean(x^2) + epsilon) * weight."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Parameter, comm: Communicator, epsilon: float = 1e-5
    ) -> Array:
        out, rstd = empty(x.shape, x.dtype), empty(x.shape[:-1], float32)
        kernels.rms_norm_forward(flat(x), weight.array, epsilon, flat(out), rstd.ravel())
        ctx.save(x, weight, comm, rstd)
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        x, weight, comm, rstd = ctx.saved
        grad_x = empty(x.shape, x.dtype)
        kernels.rms_norm_backward(flat(grad), flat(x), weight.array, rstd.ravel(), flat(grad_x))
        chunks = position_chunks(comm, ctx.position, x.shape[1])
        for segment, grad_weight in weight.segments(ctx.position):
            for leaf, chunk in enumerate(chunks):
                where = segment.samples, chunk
                kernels.rms_norm_backward_weight(
                    grad[where], x[where], rstd[where], not segment.begins, grad_weight[leaf]
                )
        return grad_x
