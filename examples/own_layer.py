"""An op and a layer of your own, in numpy, that train at any layout. From this folder:

plait train own_layer.toml --ranks 4
"""

import numpy as np

from plait import nn, ops
from plait.autograd import Function
from plait.backend import kernels
from plait.nn import LayerSpec
from plait.ops.sums import position_chunks, replicated_chains

# Sums in plait have one order, so that every layout gives the same bits. What you do element by
# element needs no care with + - * / and sqrt, which numpy always rounds correctly; its exp and sin
# may round otherwise in arrays of another length. Sums go through plait's kernels, as below.


class Squash(Function):
    """y = x / (1 + |a x|), for each channel: x (B, S, C), a (C), both this rank's channels."""

    @staticmethod
    def forward(ctx, x, a):
        ctx.save(x, a)  # what backward needs
        wide = x.astype(np.float32)  # x is float32 or bfloat16, as the run's precision says
        return (wide / (1 + np.abs(a.array * wide))).astype(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, a = ctx.saved
        wide = x.astype(np.float32)
        slope = grad / np.square(1 + np.abs(a.array * wide))
        # A parameter that is cut over tensor ranks: each segment is the samples of one data leaf,
        # `total` its sum so far. It starts at zero where the segment begins its leaf.
        products = -slope * wide * np.abs(wide) * np.sign(a.array).astype(np.float32)
        for segment, total in a.segments(ctx.position):
            kernels.sum_rows(products[segment.samples], not segment.begins, total)
        return slope.astype(x.dtype)


class Scale(Function):
    """y = x gain, for each channel: x (B, S, C) and gain (C) are whole on every tensor rank."""

    @staticmethod
    def forward(ctx, x, gain, comm):
        ctx.save(x, gain, comm)
        return x * gain.array

    @staticmethod
    def backward(ctx, grad):
        x, gain, comm = ctx.saved
        # A replicated parameter: each tensor leaf adds up its own chunk of the positions.
        products = grad.astype(np.float32) * x
        chunks = position_chunks(comm, ctx.position, x.shape[1])
        for segment, where, total in replicated_chains(gain, ctx.position, chunks):
            kernels.sum_rows(products[where], not segment.begins, total)
        return grad * gain.array


class Block(nn.Layer):
    """x + gain down(squash(up(norm(x)))): `up` leaves each tensor rank its own columns of the
    hidden channels, `down` adds over all of them."""

    def __init__(self, build, size, hidden):
        self.comm = build.comm
        self.norm = nn.LayerNorm(build.at("norm"), size)
        self.up = nn.ColumnLinear(build.at("up"), size, hidden)
        self.a = build.split("a", (hidden,), init=nn.Init(mean=1.0))  # cut as up's columns are
        self.down = nn.RowLinear(build.at("down"), hidden, size)
        self.gain = build.constant("gain", size, 1.0)  # replicated

    def __call__(self, x):
        y = self.down(Squash.apply(self.up(self.norm(x)), self.a))
        return ops.Add.apply(x, Scale.apply(y, self.gain, self.comm))


def model(*, vocabulary, sequence_length, hidden_dim, layers):
    """An embedding, `layers` blocks and a head. The data give vocabulary and sequence_length, the
    config the rest; the counts are for `plait train --dry-run` and for cutting pipeline stages."""
    v, s, c = vocabulary, sequence_length, hidden_dim
    block = LayerSpec(
        "",
        lambda build: Block(build, c, 4 * c),
        parameters=8 * c * c + 12 * c,
        flops=16 * s * c * c,
        activation=12 * s * c,
        output=s * c,
    )
    return [
        LayerSpec("embed", lambda build: nn.VocabEmbedding(build, v, c), v * c, output=s * c),
        *(LayerSpec(**{**vars(block), "name": f"blocks.{index}"}) for index in range(layers)),
        LayerSpec("head", lambda build: nn.Head(build, c, v), v * c, flops=2 * s * v * c),
    ]
