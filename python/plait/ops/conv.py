"""2-D convolutions split over the tensor axis: by output channels (column parallel) or by input
channels (row parallel).

Images are (B, H, W, C). A column-parallel weight is (local O, KH, KW, I), a row-parallel one
(local I, KH, KW, O): sharding is along axis 0 in both, so each tensor leaf is one contiguous block.
There is no bias: a norm follows.
"""

from __future__ import annotations

from typing import Any

from plait.autograd import Context, Function
from plait.backend import Array, contiguous, empty, kernels
from plait.comm import Communicator
from plait.ops.parameter import Parameter
from plait.ops.position import Position
from plait.ops.sums import Last, sum_over_leaves


def output_shape(x: Array, weight: Parameter, channels: int, stride: int, padding: int) -> Any:
    """(B, OH, OW, channels). ValueError where the kernel is larger than the padded image."""
    b, h, w, _ = x.shape
    kh, kw = weight.shape[1:3]
    if h + 2 * padding < kh or w + 2 * padding < kw:
        raise ValueError(
            f"{weight.name}: a kernel of {kh} x {kw} on images of {h} x {w} with padding "
            f"{padding}: use larger images, a smaller kernel or less striding before it"
        )
    return b, (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1, channels


def check_whole(position: Position) -> None:
    if position.sequence is not None:
        raise ValueError(
            "sequence_parallel cuts sequences, images have none: set sequence_parallel = false"
        )


def add_weight_grad(
    weight: Parameter, position: Position, grad: Array, x: Array, input_first: bool, stride: int,
    padding: int,
) -> None:  # fmt: skip
    """One chain over samples and pixels for each data leaf."""
    for run in weight.runs(position):
        kernels.conv2d_backward_weight(
            grad[run.samples], x[run.samples], input_first, stride, padding, run.bounds, run.merges,
            run.slot, run.continues, run.stack,
        )  # fmt: skip


class ColumnConv(Function):
    """This rank's output channels of a convolution; the gradient of x is summed over tensor
    leaves."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Parameter, stride: int, padding: int, comm: Communicator
    ) -> Array:
        check_whole(ctx.position)
        ctx.save(x, weight, stride, padding, comm)
        out = empty(output_shape(x, weight, len(weight.array), stride, padding), x.dtype)
        leaves = [0, x.shape[3]]
        kernels.conv2d_forward(x, weight.array, False, stride, padding, leaves, out)
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Any:
        x, weight, stride, padding, comm = ctx.saved
        position = ctx.position

        def part(start: int, stop: int, leaves: list[int], _: Last, out: Array) -> None:
            kernels.conv2d_backward(
                grad[..., start:stop], weight.array[start:stop], False, stride, padding, leaves, out
            )

        def weight_gradient() -> None:
            add_weight_grad(weight, position, grad, x, False, stride, padding)

        ctx.later(weight_gradient)
        if not ctx.needs_input_grad[0]:
            return None
        return sum_over_leaves(comm, list(weight.leaf_rows), x.shape, x.dtype, part)


class RowConv(Function):
    """A convolution over input channels that are split: its output is summed over tensor leaves."""

    @staticmethod
    def forward(
        ctx: Context, x: Array, weight: Parameter, stride: int, padding: int, comm: Communicator
    ) -> Any:
        check_whole(ctx.position)
        ctx.save(x, weight, stride, padding, comm)
        shape = output_shape(x, weight, weight.shape[3], stride, padding)

        def part(start: int, stop: int, leaves: list[int], _: Last, out: Array) -> None:
            kernels.conv2d_forward(
                x[..., start:stop], weight.array[start:stop], True, stride, padding, leaves, out
            )

        return sum_over_leaves(comm, list(weight.leaf_rows), shape, x.dtype, part).wait()

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array | None:
        x, weight, stride, padding, _ = ctx.saved
        position = ctx.position

        def weight_gradient() -> None:
            add_weight_grad(weight, position, grad, x, True, stride, padding)

        ctx.later(weight_gradient)
        if not ctx.needs_input_grad[0]:
            return None
        grad_x = empty(x.shape, x.dtype)
        leaves = [0, weight.shape[3]]
        kernels.conv2d_backward(grad, weight.array, True, stride, padding, leaves, grad_x)
        return grad_x


class GatherChannels(Function):
    """(..., this rank's channels) -> (..., channels): every tensor rank gets the whole.

    The gradient of what follows is whole on every rank, so each takes its own channels of it."""

    @staticmethod
    def forward(ctx: Context, x: Array, channels: int, comm: Communicator) -> Array:
        leaves = comm.leaves
        bounds = [leaf * channels // leaves.count for leaf in leaves.bounds]
        ctx.save(slice(bounds[comm.rank], bounds[comm.rank + 1]))
        whole: Array = comm.all_gather(x, axis=x.ndim - 1, bounds=bounds)
        return whole

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (own,) = ctx.saved
        return contiguous(grad[..., own])
