"""A Vision Transformer (Dosovitskiy et al. 2021): images in patches, each a position of a sequence.

Blocks are GPT-2's, without its mask. The classifier sees the mean over all positions (Beyer et al.
2022), not a class token of its own: the sequence is as long as there are patches, 64 and not 65,
so that pairs and blocks of products over positions (docs/numerics.md, rule 4) are full and
sequence parallel cuts it evenly. The embedding of patches is row parallel, by their pixels.
"""

from __future__ import annotations

import math

from plait import nn, ops
from plait.autograd import Tensor
from plait.models.gpt import block_specs
from plait.nn import Build, LayerSpec


class Embed(nn.Layer):
    def __init__(
        self, build: Build, patch: int, channels: int, size: int, length: int, dropout: float
    ):
        pixels = patch * patch * channels
        self.comm, self.patch = build.comm, patch
        self.linear = nn.RowLinear(build.at("patches"), pixels, size, std=math.sqrt(1 / pixels))
        self.positions = nn.PositionEmbedding(
            build.at("positions"), length, size, std=math.sqrt(1 / size)
        )
        self.dropout = nn.Dropout(build, dropout, 0)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.linear(ops.Patches.apply(x, self.patch, self.comm))
        return self.dropout(self.positions(x))


class Output(nn.Layer):
    def __init__(self, build: Build, size: int, classes: int):
        self.comm, self.vocabulary = build.comm, classes
        self.norm = nn.LayerNorm(build.at("norm"), size)
        self.head = nn.Head(build.at("head"), size, classes)

    def __call__(self, x: Tensor) -> Tensor:
        return self.head(ops.MeanPositions.apply(self.norm(x), self.comm))


def vit(
    *,
    input_shape: tuple[int, ...],
    classes: int,
    layers: int,
    hidden_dim: int,
    heads: int,
    patch: int = 4,
    dropout: float = 0.0,
    mlp_dim: int | None = None,
) -> list[LayerSpec]:
    """A ViT of `layers` blocks; patch: the side of a patch in pixels; mlp_dim defaults to
    4 x hidden_dim. input_shape is (height, width, channels).

    ValueError for images that are not (H, W, C), or that patches do not fill."""
    if len(input_shape) != 3:
        raise ValueError(f"a vit takes images (height, width, channels), not {input_shape}")
    height, width, channels = input_shape
    if height % patch or width % patch:
        raise ValueError(
            f"patches of {patch} x {patch} do not fill images of {height} x {width}: give a patch "
            "that divides both sides (model.patch), or scale the images (data.image_size)"
        )
    s, c, m = height // patch * (width // patch), hidden_dim, mlp_dim or 4 * hidden_dim
    pixels = patch * patch * channels
    specs = [
        LayerSpec(
            "embed",
            lambda build: Embed(build, patch, channels, c, s, dropout),
            parameters=pixels * c + c + s * c,
            flops=2 * s * pixels * c,
            activation=s * (pixels + c),
            output=s * c,
            sequence=s,
        )
    ]
    specs += block_specs(layers, s, c, heads, m, dropout, causal=False)
    specs.append(
        LayerSpec(
            "output",
            lambda build: Output(build, c, classes),
            parameters=2 * c + classes * c,
            flops=2 * c * classes,
            activation=2 * s * c + c + classes,
            output=c,
        )
    )
    return specs
