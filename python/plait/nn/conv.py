"""Convolutions split over the tensor axis, and batch norm. Images are (B, H, W, C)."""

from __future__ import annotations

import math

from plait import ops
from plait.autograd import Tensor
from plait.nn.layer import Build, Layer
from plait.ops.parameter import Init, Parameter

MOMENTUM = 0.1  # of running statistics


class ColumnConv(Layer):
    """(B, H, W, in) -> (B, OH, OW, this rank's output channels). Initial weights are those of He et
    al. (2015): normal, of variance 2 / (inputs of an output)."""

    def __init__(
        self, build: Build, inputs: int, outputs: int, kernel: int, *, stride: int = 1,
        padding: int | None = None,
    ):  # fmt: skip
        self.comm, self.stride = build.comm, stride
        self.padding = kernel // 2 if padding is None else padding
        init = Init(math.sqrt(2 / (inputs * kernel * kernel)))
        self.weight = build.split("weight", (outputs, kernel, kernel, inputs), init=init)

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = ops.ColumnConv.apply(x, self.weight, self.stride, self.padding, self.comm)
        return result


class RowConv(Layer):
    """(B, H, W, this rank's input channels) -> (B, OH, OW, out), summed over tensor leaves."""

    def __init__(
        self, build: Build, inputs: int, outputs: int, kernel: int, *, stride: int = 1,
        padding: int | None = None,
    ):  # fmt: skip
        self.comm, self.stride = build.comm, stride
        self.padding = kernel // 2 if padding is None else padding
        init = Init(math.sqrt(2 / (inputs * kernel * kernel)))
        self.weight = build.split("weight", (inputs, kernel, kernel, outputs), init=init)

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = ops.RowConv.apply(x, self.weight, self.stride, self.padding, self.comm)
        return result


class GatherChannels(Layer):
    """(..., this rank's channels) -> (..., channels) on every tensor rank."""

    def __init__(self, build: Build, channels: int):
        self.comm, self.channels = build.comm, channels

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = ops.GatherChannels.apply(x, self.channels, self.comm)
        return result


class BatchNorm(Layer):
    """Per channel over a microbatch, in evaluation with running statistics. split: x holds this
    rank's channels only (after a ColumnConv)."""

    def __init__(self, build: Build, channels: int, *, split: bool, epsilon: float = 1e-5):
        self.comm, self.epsilon = build.comm, epsilon

        def vector(name: str, value: float, momentum: float | None = None) -> Parameter:
            make = build.split if split else build.replicated
            return make(name, (channels,), init=Init(mean=value), momentum=momentum)

        self.weight = vector("weight", 1.0)
        self.bias = vector("bias", 0.0)
        self.running_mean = vector("running_mean", 0.0, MOMENTUM)
        self.running_variance = vector("running_variance", 1.0, MOMENTUM)

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = ops.BatchNorm.apply(
            x, self.weight, self.bias, self.running_mean, self.running_variance, self.comm,
            self.epsilon,
        )  # fmt: skip
        return result
