"""Token and position embeddings. Each token's row is on one tensor rank: it is selected, never
summed."""

from __future__ import annotations

import numpy as np

from plait.autograd import Context, Function
from plait.backend import Array, bits, copied, empty, fill, kernels, repeated
from plait.comm import Communicator
from plait.ops.parameter import Parameter
from plait.ops.sums import fan_in, gather_sequence, position_chunks, sequence_bounds


class VocabEmbedding(Function):
    """tokens (B, S) int32, weight (local vocabulary, C) -> (B, S, C), or this rank's positions of
    it."""

    @staticmethod
    def forward(ctx: Context, tokens: Array, weight: Parameter, comm: Communicator) -> Array:
        first = weight.rows[0][0]
        ctx.save(tokens, weight, comm, first)
        out = empty((*tokens.shape, weight.array.shape[1]), weight.array.dtype)
        kernels.embedding_forward(tokens.ravel(), weight.array, first, out.reshape(tokens.size, -1))
        comm.all_reduce(bits(out), out=bits(out))
        length = ctx.position.sequence
        if length is None:
            return out
        bounds = sequence_bounds(comm, length)
        return copied(out[:, bounds[comm.rank] : bounds[comm.rank + 1]])

    @staticmethod
    def backward(ctx: Context, grad: Array) -> None:
        tokens, weight, comm, first = ctx.saved
        grad = gather_sequence(comm, ctx.position, grad)
        rows = None
        if weight.by_rows:
            rows = np.unique(tokens.astype(np.int64)) - first
            rows = rows[(rows >= 0) & (rows < len(weight.array))]
        for run in weight.runs(ctx.position, rows):
            part = tokens[run.samples]
            leaves = [bound * tokens.shape[1] for bound in run.bounds]
            kernels.embedding_backward(
                part.ravel(), grad[run.samples].reshape(part.size, -1), first, leaves, run.merges,
                run.slot, run.continues, run.touched, run.stack,
            )  # fmt: skip


class PositionEmbedding(Function):
    """x (B, S, C) + weight[:S] (learned, replicated)."""

    @staticmethod
    def forward(ctx: Context, x: Array, weight: Parameter, comm: Communicator) -> Array:
        length = ctx.position.sequence
        first = sequence_bounds(comm, length)[comm.rank] if length else 0
        ctx.save(weight, comm, first)
        rows = weight.array[first : first + x.shape[1]]
        return fan_in((x, copied(repeated(rows, len(x)))))

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        weight, comm, first = ctx.saved
        channels = grad.shape[2]
        chunks = position_chunks(comm, ctx.position, grad.shape[1])
        for segment, grads in weight.segments(ctx.position):
            for chunk, total in zip(chunks, grads, strict=True):
                if segment.begins:
                    fill(total, 0)
                part = grad[segment.samples, chunk]
                count = part.shape[1]
                if count:
                    rows = total[first + chunk.start : first + chunk.stop].reshape(-1)
                    part = part.reshape(len(part), 1, count * channels)
                    kernels.sum_rows(part, not segment.begins, rows)
        return grad
