"""Token and learned position embeddings, and dropout."""

from __future__ import annotations

from collections.abc import Callable

from plait import backend, ops
from plait.autograd import Tape, Tensor
from plait.nn.attention import SelfAttention
from plait.nn.layer import Build, Layer
from plait.nn.linear import padded
from plait.nn.norm import LayerNorm, RMSNorm
from plait.ops.parameter import Init


class VocabEmbedding(Layer):
    """tokens (B, S) -> (B, S, C); the rows of the vocabulary are split over the tensor axis."""

    def __init__(self, build: Build, vocabulary: int, size: int, *, std: float = 0.02):
        self.comm = build.comm
        shape = (padded(vocabulary, build.comm.leaves.count), size)
        self.weight = build.split(
            "weight", shape, init=Init(std), true_rows=vocabulary,
            by_rows=backend.name() == "cpu",  # which rows occur is known to the host
        )  # fmt: skip

    def __call__(self, tokens: Tensor) -> Tensor:
        result: Tensor = ops.VocabEmbedding.apply(tokens, self.weight, self.comm)
        return result


class PositionEmbedding(Layer):
    """x (B, S, C) + a learned row per position."""

    def __init__(self, build: Build, length: int, size: int, *, std: float = 0.02):
        self.comm = build.comm
        self.weight = build.replicated("weight", (length, size), init=Init(std))

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = ops.PositionEmbedding.apply(x, self.weight, self.comm)
        return result


class Dropout(Layer):
    """number: which dropout of the model this is, so that each draws its own elements."""

    def __init__(self, build: Build, probability: float, number: int):
        self.comm, self.probability, self.number = build.comm, probability, number

    def __call__(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.probability, self.number, self.comm, self._training())

    def residual(self, x: Tensor, layer: Callable[..., Tensor], y: Tensor) -> Tensor:
        """x + dropout(layer(y)). Where nothing is dropped, layer's last product adds x as it is
        stored."""
        if not self._drops():
            return layer(y, residual=x)
        result: Tensor = ops.Add.apply(x, self(layer(y)))
        return result

    def normed(
        self, x: Tensor, layer: SelfAttention, y: Tensor, norm: LayerNorm | RMSNorm
    ) -> tuple[Tensor, Tensor]:
        """That sum and its norm."""
        if not self._drops():
            return layer.normed(y, x, norm)
        return norm.residual(x, self(layer(y)))

    def _drops(self) -> bool:
        return self.probability > 0.0 and self._training()

    @staticmethod
    def _training() -> bool:
        tape = Tape.current
        return tape is not None and tape.position is not None and tape.position.training
