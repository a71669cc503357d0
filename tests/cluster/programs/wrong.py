"""A model with an op that is wrong on the second node: tiny.toml with model.kind=wrong:model."""

import socket

from plait import models, nn
from plait.autograd import Function
from plait.nn import LayerSpec


class Scaled(Function):
    @staticmethod
    def forward(ctx, x):
        return x * x.dtype.type(1.01) if socket.gethostname() == "cn2" else x.copy()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Wrong(nn.Layer):
    def __call__(self, x):
        return Scaled.apply(x)


def model(*, vocabulary, sequence_length, **sizes):
    layers = models.gpt(vocabulary=vocabulary, sequence_length=sequence_length, **sizes)
    layers.insert(2, LayerSpec("wrong", lambda build: Wrong()))
    return layers
