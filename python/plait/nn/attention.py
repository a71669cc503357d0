"""Self-attention: q, k, v column parallel by heads, the output row parallel."""

from __future__ import annotations

from plait import ops
from plait.autograd import Tensor
from plait.nn.layer import Build, Layer
from plait.nn.linear import ColumnLinear, RowLinear
from plait.nn.norm import LayerNorm, RMSNorm


class SelfAttention(Layer):
    """(B, S, size) -> (B, S, size). kv_heads < heads shares keys and values between queries
    (Ainslie 2023). rope: base of rotary angles, None for none. std_out: initial std of the output
    projection. residual: added to the output."""

    def __init__(
        self, build: Build, size: int, heads: int, *, kv_heads: int | None = None,
        causal: bool = True, rope: float | None = None, bias: bool = True, std_out: float = 0.02,
    ):  # fmt: skip
        kv_heads = kv_heads or heads
        leaves = build.comm.leaves
        if size % heads or heads % kv_heads:
            raise ValueError(
                f"{heads} heads must divide hidden_dim {size}, and {kv_heads} key-value heads must "
                f"divide {heads} heads"
            )
        if kv_heads % leaves.count:
            divisor = max(n for n in range(1, leaves.count) if kv_heads % n == 0)
            raise ValueError(
                f"{leaves.count} tensor grains do not divide {kv_heads} "
                f"{'heads' if kv_heads == heads else 'key-value heads'}: take {divisor} "
                "(numerics.grains.tensor), and no larger tensor size"
            )
        head = size // heads
        self.causal, self.rope = causal, rope
        self.heads, self.kv_heads = heads // leaves.count, kv_heads // leaves.count
        self.leaves = len(leaves.run(build.comm.rank))
        parts = [size, kv_heads * head, kv_heads * head]
        self.qkv = ColumnLinear(build.at("qkv"), size, parts, bias=bias, unit=head)
        self.out = RowLinear(build.at("out"), size, size, bias=bias, std=std_out, unit=head)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.out(self._attended(x), residual=residual)

    def normed(
        self, x: Tensor, residual: Tensor, norm: LayerNorm | RMSNorm
    ) -> tuple[Tensor, Tensor]:
        """(s, norm(s)), s the output with the residual."""
        return self.out.normed(self._attended(x), residual, norm)

    def _attended(self, x: Tensor) -> Tensor:
        result: Tensor = ops.Attention.apply(
            self.qkv(x), self.leaves, self.heads, self.kv_heads, self.causal, self.rope
        )
        return result
