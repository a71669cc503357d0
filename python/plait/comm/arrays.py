"""What collectives do to their callers' arrays before and after a transport moves them: checks,
contiguous forms, results in the caller's place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from plait.backend import contiguous, empty, kernels
from plait.comm.combine import (
    FLOAT32,
    FLOATS,
    Bounds,
    Op,
    Reduction,
    even_bounds,
    from_order_keys,
    order_keys,
)
from plait.comm.tree import Leaves
from plait.comm.work import Array, Poll, Steps


def checked_out(name: str, out: Array | None, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    if out is None:
        return empty(tuple(shape), dtype)
    if out.shape != tuple(shape) or out.dtype != dtype or not out.flags.writeable:
        raise ValueError(
            f"{name}: out must be writable {tuple(shape)} {dtype}, got {out.shape} {out.dtype}"
            f"{'' if out.flags.writeable else ', read-only'}"
        )
    return out


def checked_nodes(
    name: str, leaves: Leaves, rank: int, nodes: Array, bias: Array | None
) -> tuple[Array, Array | None]:
    """Both contiguous."""
    count = len(leaves.nodes(rank))
    if nodes.dtype != FLOAT32 or nodes.ndim == 0 or len(nodes) != count:
        raise ValueError(
            f"{name}: rank {rank} needs ({count}, ...) float32, one for each tree node of "
            f"its leaves, got {nodes.shape} {nodes.dtype}"
        )
    if bias is not None and (bias.dtype != FLOAT32 or bias.shape != nodes.shape[1:][-1:]):
        raise ValueError(
            f"{name}: bias must be ({', '.join(map(str, nodes.shape[1:][-1:]))}) float32, "
            f"got {bias.shape} {bias.dtype}"
        )
    return contiguous(nodes), None if bias is None else contiguous(bias)


def checked_axis(name: str, axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name}: axis {axis} of an array with {ndim} axes")
    return axis % ndim


def address(x: Array) -> int:
    return int(kernels.address(x))


def is_node(out: Array, nodes: Array) -> bool:
    distance, rest = divmod(address(out) - address(nodes), max(out.nbytes, 1))
    return out.dtype == nodes.dtype and rest == 0 and 0 <= distance < len(nodes)


def reducible(name: str, x: Array, op: Op) -> tuple[bool, Array]:
    """x as a transport reduces it: contiguous, floats under max and min as integers."""
    if op not in ("sum", "max", "min"):
        raise ValueError(f'{name}: op must be "sum", "max" or "min", got {op!r}')
    if not x.dtype.isnative or (x.dtype.kind not in "iu" and x.dtype not in FLOATS):
        raise ValueError(f"{name}: no {op} of {x.dtype}; floats and integers have one")
    x = contiguous(x)
    if op != "sum" and x.dtype in FLOATS:
        return True, order_keys(x, op)
    return False, x


def flat_reduction(
    nodes: Array, leaves: Leaves, op: Op, bias: Array | None, size: int
) -> Reduction:
    """A reduction whose cut does not matter: by elements, by rows where there is a bias."""
    k, n = len(nodes), math.prod(nodes.shape[1:])
    if bias is not None and 0 < n < size * bias.size:
        bias = np.tile(bias, n // bias.size)
        return Reduction(nodes.reshape(k, 1, n, 1), leaves, op, even_bounds(n, size), bias, True)
    inner = 1 if bias is None or n == 0 else bias.size
    rows = n // inner
    return Reduction(nodes.reshape(k, 1, rows, inner), leaves, op, even_bounds(rows, size), bias)


def direct(out: Array, dtype: np.dtype[Any]) -> Array:
    """out itself if a transport can write there, else an array to deliver from."""
    return out if out.flags.c_contiguous and out.dtype == dtype else empty(out.shape, dtype)


def delivered(steps: Steps, target: Array, keyed: bool, out: Array) -> Steps:
    """steps, and then what they leave in target in out."""
    return steps if target is out and not keyed else _deliver(steps, target, keyed, out)


def _deliver(steps: Steps, target: Array, keyed: bool, out: Array) -> Iterator[Poll]:
    yield from steps
    if keyed:
        out[...] = from_order_keys(target, out.dtype)
    elif target is not out:
        out[...] = target


def side_by_side(
    steps: Steps, flat: Array, lengths: Sequence[int], axis: int, bounds: Bounds, out: Array
) -> Iterator[Poll]:
    """steps, and then the arrays that they leave one after the other in flat beside each other."""
    yield from steps
    start = 0
    for length, a, b in zip(lengths, bounds, bounds[1:]):
        piece = (slice(None),) * axis + (slice(a, b),)
        out[piece] = flat[start : start + length].reshape(out[piece].shape)
        start += length
