"""Linear layers split over the tensor axis, and the classifier whose columns are split as a
vocabulary."""

from __future__ import annotations

from plait import ops
from plait.autograd import Tensor
from plait.nn.layer import Build, Layer
from plait.nn.norm import LayerNorm, RMSNorm
from plait.ops.parameter import Init


class ColumnLinear(Layer):
    """(B, S, in) -> (B, S, this rank's outputs). outputs: one number, or the lengths of fused
    pieces, each cut by itself at multiples of `unit`."""

    def __init__(
        self, build: Build, inputs: int, outputs: int | list[int], *, bias: bool = True,
        std: float = 0.02, unit: int = 1,
    ):  # fmt: skip
        parts = [outputs] if isinstance(outputs, int) else outputs
        n = sum(parts)
        self.comm = build.comm
        self.weight = build.split_parts("weight", (n, inputs), parts, unit, init=Init(std))
        self.bias = build.split_parts("bias", (n,), parts, unit) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = ops.ColumnLinear.apply(x, self.weight, self.bias, self.comm)
        return result

    def gelu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(GELU(y), y), y the outputs: what RowLinear takes."""
        result: tuple[Tensor, Tensor]
        result = ops.ColumnGELU.apply(x, self.weight, self.bias, self.comm)
        return result


class RowLinear(Layer):
    """(B, S, this rank's inputs) -> (B, S, out), summed over tensor leaves; the bias is added
    once.

    gelu_input: what x is the GELU of, as ColumnLinear.gelu gives both; the gradient then goes there
    at once. residual (B, S, out): added to the output."""

    def __init__(
        self, build: Build, inputs: int, outputs: int, *, bias: bool = True, std: float = 0.02,
        unit: int = 1,
    ):  # fmt: skip
        self.comm = build.comm
        self.weight = build.split_parts("weight", (inputs, outputs), [inputs], unit, init=Init(std))
        self.bias = build.constant("bias", outputs, 0.0) if bias else None

    def __call__(
        self, x: Tensor, gelu_input: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        result: Tensor = ops.RowLinear.apply(
            x, self.weight, self.bias, self.comm, gelu_input, residual
        )
        return result

    def normed(
        self, x: Tensor, residual: Tensor, norm: LayerNorm | RMSNorm,
        gelu_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(s, norm(s)), s the output with the residual."""
        result: tuple[Tensor, Tensor] = ops.RowLinearNorm.apply(
            x, self.weight, self.bias, self.comm, gelu_input, residual,
            norm.weight, norm.bias, norm.epsilon,
        )  # fmt: skip
        return result


class Head(Layer):
    """(B, S, C) -> logits (B, S, local columns) of a vocabulary (or of classes), padded to equal
    leaves.

    tied_to: the embedding's weight this one equals at all times, wherever it lives."""

    def __init__(
        self, build: Build, inputs: int, vocabulary: int, *, tied_to: str | None = None,
        std: float = 0.02,
    ):  # fmt: skip
        self.comm, self.vocabulary = build.comm, vocabulary
        shape = (padded(vocabulary, build.comm.leaves.count), inputs)
        self.weight = build.split(
            "weight", shape, init=Init(std), tied_to=tied_to, true_rows=vocabulary
        )

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = ops.ColumnLinear.apply(x, self.weight, None, self.comm)
        return result


def padded(vocabulary: int, leaves: int) -> int:
    """The next multiple of 32 x tensor leaves."""
    unit = 32 * leaves
    return -(-vocabulary // unit) * unit
