"""Attention over this rank's heads, and rotary positions; the fused q, k, v are stored tensor leaf
by leaf."""

from __future__ import annotations

import math

from plait.autograd import Context, Function
from plait.backend import Array, copied, empty, kernels


class Attention(Function):
    """softmax(q k^T / sqrt(D)) v without a T x T matrix (Dao 2022).

    x (B, S, leaves * (heads + 2 kv_heads) * D): per tensor leaf [q, k, v] of its heads;
    out (B, S, leaves * heads * D). heads, kv_heads: per leaf. rope: base of the rotary angles
    (Su 2021), or None.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Array,
        leaves: int,
        heads: int,
        kv_heads: int,
        causal: bool = True,
        rope: float | None = None,
    ) -> Array:
        batch, length, _ = x.shape
        if rope is not None:
            x = _rotate(x, leaves, heads, kv_heads, rope, inverse=False)
        size = x.shape[2] // (leaves * (heads + 2 * kv_heads))
        out = empty((batch, length, leaves, heads, size), x.dtype)
        log_sum = empty((leaves, batch, heads, length))
        for leaf, (q, k, v) in enumerate(_split(x, leaves, heads, kv_heads)):
            kernels.attention_forward(
                q, k, v, causal, 1 / math.sqrt(size), out[:, :, leaf], log_sum[leaf]
            )
        ctx.save(x, out, log_sum, leaves, heads, kv_heads, causal, rope)
        return out.reshape(batch, length, -1)

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        x, out, log_sum, leaves, heads, kv_heads, causal, rope = ctx.saved
        grad = grad.reshape(out.shape)
        grad_x = empty(x.shape, x.dtype)
        parts = zip(
            _split(x, leaves, heads, kv_heads), _split(grad_x, leaves, heads, kv_heads), strict=True
        )
        for leaf, (qkv, grads) in enumerate(parts):
            kernels.attention_backward(
                grad[:, :, leaf], *qkv, out[:, :, leaf], log_sum[leaf],
                causal, 1 / math.sqrt(out.shape[-1]), *grads,
            )  # fmt: skip
        if rope is not None:
            grad_x = _rotate(grad_x, leaves, heads, kv_heads, rope, inverse=True)
        return grad_x


def _split(x: Array, leaves: int, heads: int, kv_heads: int) -> list[tuple[Array, Array, Array]]:
    """Views (B, S, heads, D) of q, k and v of each leaf."""
    view = x.reshape(*x.shape[:2], leaves, heads + 2 * kv_heads, -1)
    k, v = heads, heads + kv_heads
    return [
        (view[:, :, leaf, :k], view[:, :, leaf, k:v], view[:, :, leaf, v:])
        for leaf in range(leaves)
    ]


def _rotate(x: Array, leaves: int, heads: int, kv_heads: int, base: float, inverse: bool) -> Array:
    out = copied(x)
    for (q, k, _), (out_q, out_k, _) in zip(
        _split(x, leaves, heads, kv_heads), _split(out, leaves, heads, kv_heads), strict=True
    ):
        kernels.rope(q, base, 0, inverse, out_q)
        kernels.rope(k, base, 0, inverse, out_k)
    return out
