"""Pooling of images (B, H, W, C)."""

from __future__ import annotations

import numpy as np

from plait.autograd import Context, Function
from plait.backend import Array, empty, kernels


class MaxPool(Function):
    """The maximum of size x size windows; padding (below size) is never the maximum. The first of
    equal maxima gets the gradient."""

    @staticmethod
    def forward(ctx: Context, x: Array, size: int, stride: int, padding: int = 0) -> Array:
        b, h, w, c = x.shape
        if h + 2 * padding < size or w + 2 * padding < size:
            raise ValueError(
                f"max pooling of {size} x {size} on images of {h} x {w} with padding {padding}: "
                "use larger images or a smaller window"
            )
        shape = b, (h + 2 * padding - size) // stride + 1, (w + 2 * padding - size) // stride + 1, c
        out, index = empty(shape, x.dtype), empty(shape, np.int32)
        kernels.max_pool_forward(x, size, stride, padding, out, index)
        ctx.save(x.shape, index, size, stride, padding)
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        shape, index, size, stride, padding = ctx.saved
        grad_x = empty(shape, grad.dtype)
        kernels.max_pool_backward(grad, index, size, stride, padding, grad_x)
        return grad_x


class MeanPool(Function):
    """(B, H, W, C) -> (B, 1, C), the mean over all pixels: one position per sample."""

    @staticmethod
    def forward(ctx: Context, x: Array) -> Array:
        b, h, w, c = x.shape
        ctx.save(x.shape)
        out = empty((b, 1, c), x.dtype)
        kernels.mean_pool_forward(x.reshape(b, h * w, c), out.reshape(b, c))
        return out

    @staticmethod
    def backward(ctx: Context, grad: Array) -> Array:
        (shape,) = ctx.saved
        b, h, w, c = shape
        grad_x = empty(shape, grad.dtype)
        kernels.mean_pool_backward(grad.reshape(b, c), grad_x.reshape(b, h * w, c))
        return grad_x
