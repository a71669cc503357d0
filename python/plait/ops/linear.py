"""Matrix products split over the tensor axis: by outputs (column parallel) or by inputs (row
parallel).

x is (B, S, K), or (B, K) of samples that are no sequence. A column-parallel weight is (local N, K),
a row-parallel one (local K, N): sharding is along axis 0 in both, so each tensor leaf is one
contiguous block of rows.
"""

from __future__ import annotations

import math
from typing import Any

from plait.autograd import Context, Function
from plait.backend import Array, empty, kernels
from plait.comm import Communicator
from plait.ops.parameter import Parameter
from plait.ops.sums import (
    cut_sequence,
    gather_sequence,
    position_chunks,
    replicated_chains,
    sum_over_leaves,
)


def flat(x: Array) -> Array:
    """(..., C) -> (rows, C) without a copy."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # C may be 0: fewer columns than leaves


def add_weight_grad(weight: Parameter, position: Any, rows: Array, columns: Array) -> None:
    """weight.grad += rows^T columns, one chain over samples and positions; both (B, S, ...)."""
    positions = math.prod(rows.shape[1:-1])
    for run in weight.runs(position):
        kernels.matmul_backward_weight(
            flat(rows[run.samples]), flat(columns[run.samples]),
            [bound * positions for bound in run.bounds], run.merges, run.slot, run.continues,
            positions, run.stack.reshape(*run.stack.shape[:2], math.prod(run.stack.shape[2:])),
        )  # fmt: skip


class ColumnLinear(Function):
    """y = x W^T + b for this rank's columns of y; the gradient of x is summed over tensor
    leaves."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Parameter, bias: Parameter | None, comm: Communicator
    ) -> Array:
        ctx.save(x, weight, bias, comm)
        x = gather_sequence(comm, ctx.position, x)
        n, k = weight.array.shape
        out = empty((*x.shape[:-1], n), x.dtype)
        b = None if bias is None else bias.array
        kernels.matmul(flat(x), weight.array, False, True, [0, k], False, 0, b, flat(out))
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Any:
        x, weight, bias, comm = ctx.saved
        position = ctx.position
        k = weight.array.shape[1]
        shape = (*grad.shape[:-1], k)
        rows = flat(grad)

        def part(start: int, stop: int, leaves: list[int], _: Array | None, out: Array) -> None:
            kernels.matmul(
                rows[:, start:stop], weight.array[start:stop], False, False, leaves, False, 0, None,
                flat(out),
            )  # fmt: skip

        def parameters() -> None:
            add_weight_grad(weight, position, grad, gather_sequence(comm, position, x))
            if bias is not None:
                for segment, total in bias.segments(position):
                    kernels.sum_rows(grad[segment.samples], not segment.begins, total)

        ctx.later(parameters)
        if not ctx.needs_input_grad[0]:
            return None
        return sum_over_leaves(
            comm, list(weight.leaf_rows), shape, x.dtype, part, sequence=cut_sequence(position, x)
        )


class RowLinear(Function):
    """y = sum over tensor leaves of x W, + b; W's rows and x's columns are this rank's."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Parameter, bias: Parameter | None, comm: Communicator
    ) -> Any:
        ctx.save(x, weight, bias, comm)
        n = weight.array.shape[1]
        rows = flat(x)

        def part(start: int, stop: int, leaves: list[int], b: Array | None, out: Array) -> None:
            kernels.matmul(
                rows[:, start:stop], weight.array[start:stop], False, False, leaves, False, 0, b,
                flat(out),
            )  # fmt: skip

        return sum_over_leaves(
            comm, list(weight.leaf_rows), (*x.shape[:-1], n), x.dtype, part,
            bias=None if bias is None else bias.array, sequence=ctx.position.sequence,
        ).wait()  # fmt: skip

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array | None:
        x, weight, bias, comm = ctx.saved
        position = ctx.position
        local = grad
        grad = gather_sequence(comm, position, grad)
        k, n = weight.array.shape

        def parameters() -> None:
            add_weight_grad(weight, position, x, grad)
            if bias is not None:
                chunks = position_chunks(comm, position, local.shape[1])
                for segment, where, total in replicated_chains(bias, position, chunks):
                    kernels.sum_rows(local[where], not segment.begins, total)

        ctx.later(parameters)
        if not ctx.needs_input_grad[0]:
            return None
        grad_x = empty((*grad.shape[:-1], k), x.dtype)
        kernels.matmul(flat(grad), weight.array, False, True, [0, n], False, 0, None, flat(grad_x))
        return grad_x
