"""What collectives do to their callers' arrays before and after a transport moves them: checks,
contiguous forms, results in the caller's place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from plait.backend import (
    address,
    assign,
    beside,
    contiguous,
    on_device,
    put,
    to_device,
    to_host,
    writeable,
)
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


def checked_out(
    name: str, out: Array | None, shape: Sequence[int], dtype: np.dtype[Any], x: Array
) -> Array:
    """out, or a new array beside x."""
    if out is None:
        return beside(x, tuple(shape), dtype)
    if out.shape != tuple(shape) or out.dtype != dtype or not writeable(out):
        raise ValueError(
            f"{name}: out must be writable {tuple(shape)} {dtype}, got {out.shape} {out.dtype}"
            f"{'' if writeable(out) else ', read-only'}"
        )
    if on_device(out) != on_device(x):
        where = {True: "on the device", False: "in host memory"}
        raise ValueError(f"{name}: x lies {where[on_device(x)]}, out {where[on_device(out)]}")
    return out


def checked_nodes(name: str, leaves: Leaves, rank: int, nodes: Array) -> Array:
    """Contiguous."""
    count = len(leaves.nodes(rank))
    if nodes.dtype != FLOAT32 or nodes.ndim == 0 or len(nodes) != count:
        raise ValueError(
            f"{name}: rank {rank} needs ({count}, ...) float32, one for each tree node of "
            f"its leaves, got {nodes.shape} {nodes.dtype}"
        )
    return contiguous(nodes)


def checked_bias(name: str, bias: Array | None, shape: tuple[int, ...]) -> Array | None:
    """Contiguous. shape: of the sum."""
    if bias is None:
        return None
    if bias.dtype != FLOAT32 or bias.shape != shape[-1:]:
        raise ValueError(
            f"{name}: bias must be ({', '.join(map(str, shape[-1:]))}) float32, "
            f"got {bias.shape} {bias.dtype}"
        )
    return contiguous(bias)


def checked_axis(name: str, axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name}: axis {axis} of an array with {ndim} axes")
    return axis % ndim


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
        keys = order_keys(to_host(x), op)
        return True, to_device(keys) if on_device(x) else keys
    return False, x


def flat_reduction(
    nodes: Array, leaves: Leaves, op: Op, bias: Array | None, size: int, rows: bool = False
) -> Reduction:
    """A reduction whose cut does not matter: by elements, by rows where there is a bias. rows: by
    rows, though there may be fewer of them than ranks."""
    k, n = len(nodes), math.prod(nodes.shape[1:])
    if rows:
        count = math.prod(nodes.shape[1:-1])
        bounds = even_bounds(count, size)
        return Reduction(nodes.reshape(k, 1, count, nodes.shape[-1]), leaves, op, bounds, bias)
    if bias is not None and 0 < n < size * bias.size:
        tiled = np.tile(to_host(bias), n // bias.size)
        bias = to_device(tiled) if on_device(nodes) else tiled
        return Reduction(nodes.reshape(k, 1, n, 1), leaves, op, even_bounds(n, size), bias, True)
    inner = 1 if bias is None or n == 0 else bias.size
    count = n // inner
    bounds = even_bounds(count, size)
    return Reduction(nodes.reshape(k, 1, count, inner), leaves, op, bounds, bias)


def direct(out: Array, dtype: np.dtype[Any]) -> Array:
    """out itself if a transport can write there, else an array to deliver from."""
    fits = out.flags.c_contiguous and out.dtype == dtype
    return out if fits else beside(out, out.shape, dtype)


def delivered(steps: Steps, target: Array, keyed: bool, out: Array) -> Steps:
    """steps, and then what they leave in target in out."""
    return steps if target is out and not keyed else _deliver(steps, target, keyed, out)


def _deliver(steps: Steps, target: Array, keyed: bool, out: Array) -> Iterator[Poll]:
    yield from steps
    if keyed:
        put(out, from_order_keys(to_host(target), out.dtype))
    elif target is not out:
        assign(out, target)


def side_by_side(
    steps: Steps, flat: Array, lengths: Sequence[int], axis: int, bounds: Bounds, out: Array
) -> Iterator[Poll]:
    """steps, and then the arrays that they leave one after the other in flat beside each other."""
    yield from steps
    start = 0
    for length, a, b in zip(lengths, bounds, bounds[1:]):
        piece = (slice(None),) * axis + (slice(a, b),)
        assign(out[piece], flat[start : start + length].reshape(out[piece].shape))
        start += length
