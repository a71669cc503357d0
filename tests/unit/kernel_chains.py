"""Every kernel that sums over samples into a float32 gradient, as a case: a later call with
accumulate continues the chain of the one before."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from kernel_cases import Array, N, Outputs, integers
from kernel_checks import FLOAT32, random

from plait import _cpu


@dataclass(frozen=True)
class Chain:
    samples: Outputs
    shapes: tuple[tuple[int, ...], ...]  # of the sums
    kernel: Callable[..., None]  # (samples, accumulate, sums)

    def run(self, where: slice, sums: Outputs | None = None) -> Outputs:
        """Of some samples; into sums of NaN, or on from those given."""
        out = sums or tuple(np.full(shape, np.nan, FLOAT32) for shape in self.shapes)
        self.kernel([x[where] for x in self.samples], sums is not None, out)
        return out


def matmul(t: np.dtype) -> Chain:
    def kernel(x: list[Array], accumulate: bool, out: Outputs) -> None:
        a, b = (part.reshape(-1, part.shape[-1]) for part in x)
        _cpu.matmul(a, b, True, False, [0, len(a)], accumulate, 41, None, *out)

    return Chain((random((N, 41, 33), t, 1), random((N, 41, 67), t, 2)), ((33, 67),), kernel)


def matmul_backward_weight(t: np.dtype) -> Chain:
    def kernel(x: list[Array], accumulate: bool, out: Outputs) -> None:
        a, b = (part.reshape(-1, part.shape[-1]) for part in x)
        _cpu.matmul_backward_weight(a, b, [0, len(a)], [0], 0, accumulate, 41, out[0][None])

    return Chain((random((N, 41, 33), t, 1), random((N, 41, 67), t, 2)), ((33, 67),), kernel)


def sum_rows(t: np.dtype) -> Chain:
    def kernel(x: list[Array], accumulate: bool, out: Outputs) -> None:
        _cpu.sum_rows(*x, accumulate, *out)

    return Chain((random((N, 41, 170), t),), ((170,),), kernel)


def norm(name: str) -> Callable[[np.dtype], Chain]:
    def make(t: np.dtype) -> Chain:
        def kernel(x: list[Array], accumulate: bool, out: Outputs) -> None:
            getattr(_cpu, f"{name}_norm_backward_weight")(*x, accumulate, *out)

        moments = [random((N, 41), seed=s) for s in ((3, 4) if name == "layer" else (4,))]
        arrays = random((N, 41, 130), t, 1), random((N, 41, 130), t, 2), *moments
        return Chain(arrays, ((130,),) * len(moments), kernel)

    return make


def embedding(t: np.dtype) -> Chain:
    def kernel(x: list[Array], accumulate: bool, out: Outputs) -> None:
        tokens, grad = x
        leaves = [0, tokens.size]
        _cpu.embedding_backward(
            tokens.ravel(), grad.reshape(-1, 33), 10, leaves, [0], 0, accumulate, None, out[0][None]
        )

    grad = (random((N, 80, 33)) ** 5).astype(t)  # of many sizes, or few sums would need rounding
    return Chain((integers((N, 80), 14), grad), ((9, 33),), kernel)


def conv(input_first: bool) -> Callable[[np.dtype], Chain]:
    def make(t: np.dtype) -> Chain:
        def kernel(x: list[Array], accumulate: bool, out: Outputs) -> None:
            leaves = [0, len(x[0])]
            _cpu.conv2d_backward_weight(
                *x, input_first, 2, 1, leaves, [0], 0, accumulate, out[0][None]
            )

        shape = (11, 3, 3, 35) if input_first else (35, 3, 3, 11)
        return Chain((random((N, 5, 4, 35), t), random((N, 9, 8, 11), t)), (shape,), kernel)

    return make


def batch_norm(t: np.dtype) -> Chain:
    mean, variance = random((70,), seed=3), np.abs(random((70,), seed=4))

    def kernel(x: list[Array], accumulate: bool, out: Outputs) -> None:
        _cpu.batch_norm_backward_weight(*x, mean, variance, 1e-5, accumulate, *out)

    return Chain((random((N, 41, 70), t, 1), random((N, 41, 70), t, 2)), ((70,), (70,)), kernel)


CHAINS: dict[str, Callable[[np.dtype], Chain]] = {
    "matmul (a weight's gradient)": matmul,
    "matmul_backward_weight": matmul_backward_weight,
    "sum_rows": sum_rows,
    "layer_norm_backward_weight": norm("layer"),
    "rms_norm_backward_weight": norm("rms"),
    "embedding_backward": embedding,
    "conv2d_backward_weight": conv(False),
    "conv2d_backward_weight (input first)": conv(True),
    "batch_norm_backward_weight": batch_norm,
}
