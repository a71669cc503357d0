"""Norm layers with replicated weights. norm(x) is the norm alone; x, n = norm.residual(x, y) also
goes on with the residual stream."""

from __future__ import annotations

from plait import ops
from plait.autograd import Tensor
from plait.nn.layer import Build, Layer


class LayerNorm(Layer):
    def __init__(self, build: Build, size: int, *, epsilon: float = 1e-5):
        self.comm, self.epsilon = build.comm, epsilon
        self.weight = build.constant("weight", size, 1.0)
        self.bias = build.constant("bias", size, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = ops.LayerNorm.apply(x, self.weight, self.bias, self.comm, self.epsilon)
        return result

    def residual(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x + y, norm(x + y)), or (x, norm(x)); the first has another use."""
        result: tuple[Tensor, Tensor] = ops.ResidualLayerNorm.apply(
            x, y, self.weight, self.bias, self.comm, self.epsilon
        )
        return result


class RMSNorm(Layer):
    def __init__(self, build: Build, size: int, *, epsilon: float = 1e-5):
        self.comm, self.epsilon = build.comm, epsilon
        self.weight = build.constant("weight", size, 1.0)
        self.bias = None

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = ops.RMSNorm.apply(x, self.weight, self.comm, self.epsilon)
        return result

    def residual(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x + y, norm(x + y)), or (x, norm(x)); the first has another use."""
        result: tuple[Tensor, Tensor] = ops.ResidualRMSNorm.apply(
            x, y, self.weight, self.comm, self.epsilon
        )
        return result
