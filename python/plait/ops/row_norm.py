"""A row-parallel product, the residual stream it goes to and the norm of that, as one op: on GPUs
of a node the kernel that adds up the ranks' products does all of it, elsewhere a pass over the sum.
"""

from __future__ import annotations

from typing import Any

from plait.autograd import Context, Function
from plait.backend import Array
from plait.comm import Communicator
from plait.ops.linear import row_backward, row_forward
from plait.ops.norm import norm_backward, norm_of
from plait.ops.parameter import Parameter


class RowLinearNorm(Function):
    """s = residual + y, y that of RowLinear, and the layer norm of s; or the RMS norm, which has no
    norm_bias."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Parameter, bias: Parameter | None, comm: Communicator,
        gelu_input: Array | None, residual: Array, norm_weight: Parameter,
        norm_bias: Parameter | None, epsilon: float = 1e-5,
    ) -> tuple[Array, Array]:  # fmt: skip
        norm = norm_of(norm_weight, norm_bias, epsilon)
        found = row_forward(ctx.position, x, weight, bias, comm, residual, norm)
        row = x, weight, bias, comm, gelu_input, True  # with a residual
        ctx.save(row, (found.stream, found.statistics, norm_weight, norm_bias, comm))
        return found.stream, found.normed

    @staticmethod
    def backward(ctx: Context, grad_stream: Array | None, grad: Array | None) -> Any:
        row, norm = ctx.saved
        grad_s = norm_backward(ctx.position, grad_stream, grad, *norm)
        assert grad_s is not None  # one of the outputs was used
        return row_backward(ctx, grad_s, *row)
