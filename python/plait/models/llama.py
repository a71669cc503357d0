"""Llama (Touvron et al. 2023): rotary positions, RMS norm, SwiGLU, grouped queries, no biases."""

from __future__ import annotations

import math

from plait import nn, ops
from plait.autograd import Tensor
from plait.nn import Build, LayerSpec


class MLP(nn.Layer):
    def __init__(self, build: Build, size: int, hidden: int, std_out: float):
        self.gate_up = nn.ColumnLinear(build.at("gate_up"), size, [hidden, hidden], bias=False)
        self.down = nn.RowLinear(build.at("down"), hidden, size, bias=False, std=std_out)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y: Tensor = ops.SwiGLU.apply(self.gate_up(x), self.gate_up.weight.leaf_rows)
        return self.down(y, residual=residual)


class Block(nn.Layer):
    def __init__(
        self, build: Build, size: int, heads: int, kv_heads: int, hidden: int, rope: float,
        std_out: float,
    ):  # fmt: skip
        self.norm1 = nn.RMSNorm(build.at("norm1"), size)
        self.attention = nn.SelfAttention(
            build.at("attention"), size, heads, kv_heads=kv_heads, rope=rope, bias=False,
            std_out=std_out,
        )  # fmt: skip
        self.norm2 = nn.RMSNorm(build.at("norm2"), size)
        self.mlp = MLP(build.at("mlp"), size, hidden, std_out)

    def __call__(self, x: Tensor) -> Tensor:
        x, n = self.norm1.residual(x)
        x, n = self.attention.normed(n, x, self.norm2)
        return self.mlp(n, residual=x)


class Output(nn.Layer):
    def __init__(self, build: Build, vocabulary: int, size: int):
        self.vocabulary = vocabulary
        self.norm = nn.RMSNorm(build.at("norm"), size)
        self.head = nn.Head(build.at("head"), size, vocabulary)

    def __call__(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def llama(
    *,
    layers: int,
    hidden_dim: int,
    heads: int,
    vocabulary: int,
    sequence_length: int,
    kv_heads: int | None = None,
    mlp_dim: int | None = None,
    rope_base: float = 10000.0,
) -> list[LayerSpec]:
    """A Llama of `layers` blocks; mlp_dim defaults to 8/3 x hidden_dim, to the next multiple of
    32."""
    c, s, v, kv = hidden_dim, sequence_length, vocabulary, kv_heads or heads
    m = mlp_dim or -(-8 * c // 96) * 32
    std_out = 0.02 / math.sqrt(2 * max(layers, 1))
    weights = 2 * c * c + 2 * c * (c // heads) * kv + 3 * c * m
    specs = [
        LayerSpec(
            "embed",
            lambda build: nn.VocabEmbedding(build.at("tokens"), v, c),
            parameters=v * c,
            activation=s * c,
            output=s * c,
        )
    ]
    specs += [
        LayerSpec(
            f"blocks.{index}",
            lambda build: Block(build, c, heads, kv, m, rope_base, std_out),
            parameters=weights + 2 * c,
            flops=2 * s * weights + 2 * s * s * c,
            activation=s * (10 * c + 3 * m),
            output=s * c,
            tensor_units=kv,
        )
        for index in range(layers)
    ]
    specs.append(
        LayerSpec(
            "output",
            lambda build: Output(build, v, c),
            parameters=c + v * c,
            flops=2 * s * v * c,
            activation=s * (2 * c + v),
            output=s * c,
        )
    )
    return specs
