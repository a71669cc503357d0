"""Images as sequences: patches are their positions, and the mean over positions leads back."""

from __future__ import annotations

from plait.autograd import Context, Function
from plait.backend import Array, copied, empty, kernels
from plait.comm import Communicator
from plait.ops.sums import cut_sequence, gather_sequence, sequence_bounds


class Patches(Function):
    """Images (B, H, W, C) -> (B, H / p * W / p, this rank's numbers of each patch p x p x C), for a
    row-parallel layer. Patches lie row by row, and so do the pixels of one."""

    @staticmethod
    def forward(ctx: Context, x: Array, patch: int, comm: Communicator) -> Array:
        b, h, w, c = x.shape
        parts = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
        whole = copied(parts).reshape(b, -1, patch * patch * c)
        cut = comm.leaves.cut(whole.shape[2], comm.rank)
        ctx.save(x.shape, patch, comm)
        return whole if comm.size == 1 else copied(whole[:, :, cut[0] : cut[-1]])

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (b, h, w, c), patch, comm = ctx.saved
        bounds = [leaf * patch * patch * c // comm.leaves.count for leaf in comm.leaves.bounds]
        whole = comm.all_gather(grad, axis=2, bounds=bounds)
        parts = whole.reshape(b, h // patch, w // patch, patch, patch, c)
        return copied(parts.transpose(0, 1, 3, 2, 4, 5)).reshape(b, h, w, c)


class MeanPositions(Function):
    """(B, S, C), or this rank's positions of it, -> (B, C) on every tensor rank."""

    @staticmethod
    def forward(ctx: Context, x: Array, comm: Communicator) -> Array:
        length = cut_sequence(ctx.position, x)
        x = gather_sequence(comm, ctx.position, x)
        own = sequence_bounds(comm, length)[comm.rank : comm.rank + 2] if length else None
        ctx.save(x.shape, own)
        out = empty((len(x), x.shape[2]), x.dtype)
        kernels.mean_pool_forward(x, out)
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, own = ctx.saved
        grad_x = empty(shape, grad.dtype)
        kernels.mean_pool_backward(grad, grad_x)
        return grad_x if own is None else copied(grad_x[:, own[0] : own[1]])
