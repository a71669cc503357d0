"""GPT-2 (Radford et al. 2019): learned positions, layer norm before each part, tied head."""

from __future__ import annotations

import math

from plait import nn
from plait.autograd import Tensor
from plait.nn import Build, LayerSpec


class Embed(nn.Layer):
    def __init__(self, build: Build, vocabulary: int, size: int, length: int, dropout: float):
        self.tokens = nn.VocabEmbedding(build.at("tokens"), vocabulary, size)
        self.positions = nn.PositionEmbedding(build.at("positions"), length, size)
        self.dropout = nn.Dropout(build, dropout, 0)

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.positions(self.tokens(tokens)))


class MLP(nn.Layer):
    def __init__(self, build: Build, size: int, hidden: int, std_out: float):
        self.up = nn.ColumnLinear(build.at("up"), size, hidden)
        self.down = nn.RowLinear(build.at("down"), hidden, size, std=std_out)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.down(*self.up.gelu(x), residual=residual)


class Block(nn.Layer):
    def __init__(
        self, build: Build, size: int, heads: int, hidden: int, dropout: float, std_out: float, *,
        causal: bool = True,
    ):  # fmt: skip
        self.norm1 = nn.LayerNorm(build.at("norm1"), size)
        self.attention = nn.SelfAttention(
            build.at("attention"), size, heads, causal=causal, std_out=std_out
        )
        self.dropout1 = nn.Dropout(build, dropout, 2 * build.index + 1)
        self.norm2 = nn.LayerNorm(build.at("norm2"), size)
        self.mlp = MLP(build.at("mlp"), size, hidden, std_out)
        self.dropout2 = nn.Dropout(build, dropout, 2 * build.index + 2)

    def __call__(self, x: Tensor) -> Tensor:
        x, n = self.norm1.residual(x)
        x, n = self.dropout1.normed(x, self.attention, n, self.norm2)
        return self.dropout2.residual(x, self.mlp, n)


class Output(nn.Layer):
    def __init__(self, build: Build, vocabulary: int, size: int, tied: bool):
        self.vocabulary = vocabulary
        self.norm = nn.LayerNorm(build.at("norm"), size)
        self.head = nn.Head(
            build.at("head"), size, vocabulary, tied_to="embed.tokens.weight" if tied else None
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def block_specs(
    layers: int, s: int, c: int, heads: int, m: int, dropout: float, causal: bool = True
) -> list[LayerSpec]:
    """Blocks for s positions of c elements, with MLPs of m."""
    std_out = 0.02 / math.sqrt(2 * max(layers, 1))
    return [
        LayerSpec(
            f"blocks.{index}",
            lambda build: Block(build, c, heads, m, dropout, std_out, causal=causal),
            parameters=4 * c * c + 2 * c * m + 9 * c + m,
            flops=2 * s * (4 * c * c + 2 * c * m) + (2 if causal else 4) * s * s * c,
            activation=s * (10 * c + 2 * m),
            output=s * c,
            tensor_units=heads,
        )
        for index in range(layers)
    ]


def gpt(
    *,
    layers: int,
    hidden_dim: int,
    heads: int,
    vocabulary: int,
    sequence_length: int,
    dropout: float = 0.0,
    mlp_dim: int | None = None,
    tied: bool = True,
) -> list[LayerSpec]:
    """A GPT-2 of `layers` blocks; mlp_dim defaults to 4 x hidden_dim."""
    c, s, m, v = hidden_dim, sequence_length, mlp_dim or 4 * hidden_dim, vocabulary
    specs = [
        LayerSpec(
            "embed",
            lambda build: Embed(build, v, c, s, dropout),
            parameters=(v + s) * c,
            activation=s * c,
            output=s * c,
        )
    ]
    specs += block_specs(layers, s, c, heads, m, dropout)
    specs.append(
        LayerSpec(
            "output",
            lambda build: Output(build, v, c, tied),
            parameters=2 * c + (0 if tied else v * c),
            copies=v * c if tied else 0,
            flops=2 * s * v * c,
            activation=s * (2 * c + v),
            output=s * c,
        )
    )
    return specs
