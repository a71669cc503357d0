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
from plait.comm.after import Norm
from plait.ops.parameter import Parameter
from plait.ops.position import Position
from plait.ops.sums import (
    Last,
    cut_sequence,
    fan_in,
    gather_sequence,
    position_chunks,
    replicated_chains,
    sum_over_leaves,
)


def flat(x: Array) -> Array:
    """(..., C) -> (rows, C) without a copy."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # C may be 0: fewer columns than leaves


def flat_or_none(x: Array | None) -> Array | None:
    return None if x is None else flat(x)


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
        out, _ = _columns(ctx, x, weight, bias, comm, gelu=False)
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Any:
        return _columns_backward(ctx, grad, *ctx.saved)


class ColumnGELU(Function):
    """(GELU(y), y) of ColumnLinear's y, in one kernel.

    Where GELU(y) goes to a RowLinear that is given y, too, the gradient comes to y."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Parameter, bias: Parameter | None, comm: Communicator
    ) -> tuple[Array, Array]:
        out, activated = _columns(ctx, x, weight, bias, comm, gelu=True)
        ctx.save(x, weight, bias, comm, out)
        return activated, out

    @staticmethod
    def backward(ctx: Context, grad: Array | None, grad_out: Array | None) -> Any:
        *saved, out = ctx.saved
        if grad is not None:
            through = empty(out.shape, out.dtype)
            kernels.gelu_backward(grad, out, through)
            grad_out = through if grad_out is None else fan_in((through, grad_out))
        assert grad_out is not None
        return _columns_backward(ctx, grad_out, *saved)


def _columns(
    ctx: Context, x: Array, weight: Parameter, bias: Parameter | None, comm: Communicator, *,
    gelu: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """This rank's columns, and their GELU if it is wanted."""
    x = gather_sequence(comm, ctx.position, x)
    n, k = weight.array.shape
    out = empty((*x.shape[:-1], n), x.dtype)
    activated = empty(out.shape, out.dtype) if gelu else out
    b = None if bias is None else bias.array
    kernels.matmul(
        flat(x), weight.array, False, True, [0, k], False, 0, b, flat(out),
        gelu=flat(activated) if gelu else None,
    )  # fmt: skip
    return out, activated


def _columns_backward(
    ctx: Context, grad: Array, x: Array, weight: Parameter, bias: Parameter | None,
    comm: Communicator,
) -> Any:  # fmt: skip
    position = ctx.position
    k = weight.array.shape[1]
    shape = (*grad.shape[:-1], k)
    rows = flat(grad)

    def part(start: int, stop: int, leaves: list[int], _: Last, out: Array) -> None:
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
    """y = sum over tensor leaves of x W, + b; W's rows and x's columns are this rank's.

    gelu_input: where x is GELU(gelu_input); its gradient is given in place of x's.
    residual: added to what y is stored as; on the rank that has all leaves in the same kernel."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Parameter, bias: Parameter | None, comm: Communicator,
        gelu_input: Array | None = None, residual: Array | None = None,
    ) -> Any:  # fmt: skip
        ctx.save(x, weight, bias, comm, gelu_input, residual is not None)
        return row_forward(ctx.position, x, weight, bias, comm, residual)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> tuple[Array | None, ...]:
        return row_backward(ctx, grad, *ctx.saved)


def row_forward(
    position: Position, x: Array, weight: Parameter, bias: Parameter | None, comm: Communicator,
    residual: Array | None, norm: Norm | None = None,
) -> Any:  # fmt: skip
    """An array, or a Normed if there is a norm."""
    n = weight.array.shape[1]
    rows = flat(x)

    def part(start: int, stop: int, leaves: list[int], last: Last, out: Array) -> None:
        kernels.matmul(
            rows[:, start:stop], weight.array[start:stop], False, False, leaves, False, 0,
            last.bias, flat(out), residual=flat_or_none(last.residual),
        )  # fmt: skip

    return sum_over_leaves(
        comm, list(weight.leaf_rows), (*x.shape[:-1], n), x.dtype, part,
        last=Last(None if bias is None else bias.array, residual, norm), sequence=position.sequence,
    ).wait()  # fmt: skip


def row_backward(
    ctx: Context, grad: Array, x: Array, weight: Parameter, bias: Parameter | None,
    comm: Communicator, gelu_input: Array | None, has_residual: bool,
) -> tuple[Array | None, ...]:  # fmt: skip
    """Gradients of x or gelu_input, and of the residual."""
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
    behind = () if gelu_input is None else (None,)  # x, whose gradient went on to gelu_input
    others = (local,) if has_residual else ()
    if not ctx.needs_input_grad[len(behind)]:
        return (*behind, None, *others)
    grad_x = empty((*grad.shape[:-1], k), x.dtype)
    kernels.matmul(
        flat(grad), weight.array, False, True, [0, n], False, 0, None, flat(grad_x),
        gelu_backward=flat_or_none(gelu_input),
    )  # fmt: skip
    return (*behind, grad_x, *others)
