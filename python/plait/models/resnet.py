"""A residual network (He et al. 2016) for small images, such as 28 x 28 or 32 x 32.

A 3 x 3 stem keeps the size or strides over it; each group after the first halves it and doubles the
channels. Inside a block a column-parallel convolution is followed by a row-parallel one; between
blocks every tensor rank has all channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from plait import nn, ops
from plait.autograd import Tensor
from plait.nn import Build, LayerSpec


class ConvNorm(nn.Layer):
    """Convolution and batch norm by this rank's output channels, then all channels gathered."""

    def __init__(self, build: Build, inputs: int, outputs: int, kernel: int, stride: int = 1):
        self.conv = nn.ColumnConv(build.at("conv"), inputs, outputs, kernel, stride=stride)
        self.norm = nn.BatchNorm(build.at("norm"), outputs, split=True)
        self.gather = nn.GatherChannels(build, outputs)

    def __call__(self, x: Tensor) -> Tensor:
        return self.gather(self.norm(self.conv(x)))


class Stem(nn.Layer):
    def __init__(self, build: Build, inputs: int, outputs: int, stride: int):
        self.first = ConvNorm(build, inputs, outputs, 3, stride)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = ops.ReLU.apply(self.first(x))
        return y


class Block(nn.Layer):
    def __init__(self, build: Build, inputs: int, outputs: int, stride: int):
        self.conv1 = nn.ColumnConv(build.at("conv1"), inputs, outputs, 3, stride=stride)
        self.norm1 = nn.BatchNorm(build.at("norm1"), outputs, split=True)
        self.conv2 = nn.RowConv(build.at("conv2"), outputs, outputs, 3)
        self.norm2 = nn.BatchNorm(build.at("norm2"), outputs, split=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvNorm(build.at("shortcut"), inputs, outputs, 1, stride)

    def __call__(self, x: Tensor) -> Tensor:
        y = ops.ReLU.apply(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut(x)
        result: Tensor = ops.ReLU.apply(ops.Add.apply(x, y))
        return result


class Output(nn.Layer):
    def __init__(self, build: Build, channels: int, classes: int):
        self.head = nn.Head(build, channels, classes, std=math.sqrt(1 / channels))
        self.vocabulary = classes

    def __call__(self, x: Tensor) -> Tensor:
        return self.head(ops.MeanPool.apply(x))


def resnet(
    *,
    input_shape: tuple[int, ...],
    classes: int,
    blocks: Sequence[int] = (2, 2, 2, 2),
    width: int = 64,
    stem_stride: int = 1,
) -> list[LayerSpec]:
    """blocks: residual blocks of each group; width: channels of the first, doubled by each further
    one; stem_stride: of the first convolution, 2 halves the images at once. input_shape is (height,
    width, channels). (2, 2, 2, 2) and 64 are ResNet-18.

    ValueError for images that are not (H, W, C)."""
    if len(input_shape) != 3:
        raise ValueError(f"a resnet takes images (height, width, channels), not {input_shape}")
    height, side, inputs = input_shape
    before = height * side
    height, side = -(-height // stem_stride), -(-side // stem_stride)
    pixels = height * side
    specs = [
        LayerSpec(
            "stem",
            lambda build: Stem(build, inputs, width, stem_stride),
            parameters=9 * inputs * width + 2 * width,
            flops=2 * 9 * inputs * width * pixels,
            activation=before * inputs + pixels * 3 * width,
            output=pixels * width,
            mixes_samples=True,
        )
    ]
    channels = width
    for group, count in enumerate(blocks):
        outputs = width << group
        for index in range(count):
            stride = 2 if group > 0 and index == 0 else 1
            before = pixels
            height, side = -(-height // stride), -(-side // stride)
            pixels = height * side
            name = f"groups.{group}.{index}"
            specs.append(_block(name, channels, outputs, stride, before, pixels))
            channels = outputs
    specs.append(
        LayerSpec(
            "output",
            lambda build: Output(build, channels, classes),
            parameters=channels * classes,
            flops=2 * channels * classes,
            activation=channels + classes,
            output=channels,
        )
    )
    return specs


def _block(
    name: str, inputs: int, outputs: int, stride: int, before: int, pixels: int
) -> LayerSpec:
    """before, pixels: of its input and its output image."""
    weights = 9 * inputs * outputs + 9 * outputs * outputs
    norms = 4 * outputs
    shortcut = stride != 1 or inputs != outputs
    if shortcut:
        weights += inputs * outputs
        norms += 2 * outputs
    return LayerSpec(
        name,
        lambda build: Block(build, inputs, outputs, stride),
        parameters=weights + norms,
        flops=2 * weights * pixels,
        activation=before * inputs + pixels * outputs * (6 if shortcut else 5),
        output=pixels * outputs,
        mixes_samples=True,
    )
