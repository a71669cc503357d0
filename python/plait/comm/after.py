"""What may follow a sum that every rank gets: a residual, and a norm, each with the bits of an op
of its own (docs/numerics.md, rule 9). A transport whose kernels do it does it there, others here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from plait.backend import (
    beside,
    contiguous,
    copied,
    kernels_of,
    on_device,
    same_array,
    share_memory,
)
from plait.comm.combine import BFLOAT16, FLOAT32
from plait.comm.work import Array


class Norm(NamedTuple):
    """A layer norm over the last axis, (C,); an RMS norm where there is no bias. weight and bias
    have the type of what is normed, or float32."""

    weight: Array
    bias: Array | None = None
    epsilon: float = 1e-5

    @property
    def arrays(self) -> list[Array]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class Normed(NamedTuple):
    """What was normed, stream (..., C), its norm, alike, and of each row what the norm's backward
    needs, float32 (...,); an RMS norm has no mean."""

    stream: Array
    normed: Array
    mean: Array | None
    rstd: Array

    @property
    def statistics(self) -> list[Array]:
        return [self.rstd] if self.mean is None else [self.mean, self.rstd]


def normed(x: Array, residual: Array | None, norm: Norm) -> Normed:
    """The norm of x + residual, or of x itself, in one pass; both (..., C)."""
    x, residual = contiguous(x), None if residual is None else contiguous(residual)
    out = _room(norm, x if residual is None else beside(x, x.shape, x.dtype))
    _add_and_norm(x, residual, norm, out)
    return out


def _room(norm: Norm, stream: Array) -> Normed:
    """Uninitialised beside the stream, but for that itself."""
    rows = stream.shape[:-1]
    mean = None if norm.bias is None else beside(stream, rows, FLOAT32)
    out = beside(stream, stream.shape, stream.dtype)
    return Normed(stream, out, mean, beside(stream, rows, FLOAT32))


def _add_and_norm(x: Array, residual: Array | None, norm: Norm, out: Normed) -> None:
    """Without residual x is out.stream, else out.stream is written."""
    kernels = kernels_of(x)
    kernel = kernels.rms_norm_forward if norm.bias is None else kernels.layer_norm_forward
    stream = None if residual is None else _rows(out.stream)
    kernel(
        _rows(x), None if residual is None else _rows(residual), *norm.arrays, norm.epsilon, stream,
        _rows(out.normed), *(each.reshape(-1) for each in out.statistics),
    )  # fmt: skip


def _rows(x: Array) -> Array:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def others_of(bias: Array | None, residual: Array | None, norm: Norm | None) -> list[Array]:
    """What a sum with these reads besides its parts."""
    if norm is None:
        return [x for x in (bias, residual) if x is not None]
    return [*others_of(bias, residual, None), *norm.arrays]


class After(NamedTuple):
    """residual: contiguous. norm: of what that gives, or of the sum; it goes to normed, whose
    stream is the result."""

    residual: Array | None = None
    norm: Norm | None = None
    normed: Normed | None = None

    def follow(self, total: Array, out: Array) -> None:
        """out = total + the residual, and the norm of that. Both contiguous, of rows where there is
        a norm; out shares memory with total only if it is total, and nothing is added."""
        residual = None if self.residual is None else self.residual.reshape(out.shape)
        if self.normed is not None and self.norm is not None:
            _add_and_norm(total, residual, self.norm, self.normed._replace(stream=out))
        elif residual is not None:
            kernels_of(out).add([residual, total], out)


NOTHING = After()


def checked_after(name: str, residual: Array | None, norm: Norm | None, out: Array) -> After | None:
    """None where nothing follows."""
    if residual is None and norm is None:
        return None
    if out.dtype not in (FLOAT32, BFLOAT16):
        raise ValueError(
            f"{name}: a residual and a norm are for sums in float32 or bfloat16, not {out.dtype}"
        )
    if residual is not None and (residual.shape != out.shape or residual.dtype != out.dtype):
        raise ValueError(
            f"{name}: residual must be {out.shape} {out.dtype}, as the result, got "
            f"{residual.shape} {residual.dtype}"
        )
    if norm is not None:
        channels, kinds = out.shape[-1:], {x.dtype for x in norm.arrays}
        if not any(channels) or any(x.shape != channels for x in norm.arrays):
            raise ValueError(
                f"{name}: a norm of {out.shape} needs a last axis of at least 1, and weight and "
                f"bias as long, got {[x.shape for x in norm.arrays]}"
            )
        if len(kinds) > 1 or not kinds <= {FLOAT32, out.dtype}:
            raise ValueError(
                f"{name}: weight and bias of a norm of {out.dtype} must be that both, or float32, "
                f"got {[str(x.dtype) for x in norm.arrays]}"
            )
        bias = None if norm.bias is None else contiguous(norm.bias)
        norm = norm._replace(weight=contiguous(norm.weight), bias=bias)
    if any(on_device(x) != on_device(out) for x in others_of(None, residual, norm)):
        raise ValueError(f"{name}: residual and norm must lie where the result does")
    if residual is not None:
        residual = contiguous(residual)
        if share_memory(residual, out) and not same_array(residual, out):
            residual = copied(residual)
    return After(residual, norm, None if norm is None else _room(norm, out))
