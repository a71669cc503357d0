"""A trace: what one rank computed in some steps, a few bytes of each tensor.

Two kinds of sums of 64 bits, both of which shards add up to. Of activations, one for every sample:
every element's mixed bits times a weight for each axis, powers of an odd constant, so that a shard
that starts elsewhere on an axis needs but a factor. Of parameters, kernels.fingerprint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from plait.backend import Array, to_host
from plait.backend.host import kernels
from plait.mesh import Coordinates
from plait.train.engine import Engine
from plait.verify.key import Key
from plait.verify.listener import Listener

MASK = (1 << 64) - 1
_AXES = (0x9E3779B97F4A7C15, 0xD1342543DE82EF95, 0xAF251AF3B0F025B5, 0xDA942042E4DD58B5)


@dataclass(frozen=True)
class Samples:
    """From sample `first` on: the shape of each on this rank, and a sum of each. count: 0, or of
    how many samples this one array is."""

    first: int
    shape: tuple[int, ...]
    sums: Array
    count: int = 0


@dataclass(frozen=True)
class Pieces:
    """Of `whole` elements of a parameter's global array, those in `ranges`."""

    whole: int
    ranges: tuple[tuple[int, int], ...]
    sum: int


@dataclass
class RankTrace:
    """What rank `rank` (of the mesh's world) at `at` on `host` computed."""

    rank: int
    at: Coordinates
    host: str
    samples: dict[Key, list[Samples]] = field(default_factory=dict)
    pieces: dict[Key, Pieces] = field(default_factory=dict)


class Tracer(Listener):
    """Makes the trace of this rank."""

    def __init__(self, engine: Engine, host: str):
        super().__init__(engine)
        mesh = engine.mesh
        self.found = RankTrace(mesh.world.rank, mesh.coordinates, host)

    def samples(self, key: Key, first: int, array: Array, count: int) -> None:
        array = to_host(array)
        whole = array.ndim == 0 or len(array) != count
        each = array[None] if whole else array
        found = Samples(first, each.shape[1:], sample_sums(each), count if whole else 0)
        self.found.samples.setdefault(key, []).append(found)

    def pieces(self, key: Key, whole: int, parts: list[tuple[int, Array]]) -> None:
        ranges = tuple((start, start + len(values)) for start, values in parts if len(values))
        held = ((start, np.ascontiguousarray(to_host(values))) for start, values in parts)
        total = sum(kernels.fingerprint(values, start) for start, values in held)
        self.found.pieces[key] = Pieces(whole, ranges, total & MASK)


def sample_sums(array: Array) -> Array:
    """One sum for each array[i], modulo 2^64."""
    if array.itemsize not in (2, 4):
        array = np.ascontiguousarray(array)[..., None].view(np.uint8).astype(np.int32)
    shape = array.shape[1:]
    flat = np.ascontiguousarray(array).reshape(
        len(array), math.prod(shape[:-1]), *shape[-1:] or [1]
    )
    rows = np.ones(1, np.uint64)
    for axis, size in enumerate(shape[:-1]):
        rows = np.multiply.outer(rows, _powers(axis, size)).reshape(-1)
    columns = _powers(len(shape) - 1, flat.shape[2])
    return np.array([kernels.weighted_bits(each, rows, columns) for each in flat], np.uint64)


def moved(total: int, axis: int, start: int) -> int:
    """The sum of a shard whose elements lie `start` further on that axis."""
    return total * pow(_AXES[axis % len(_AXES)], start, MASK + 1) & MASK


def _powers(axis: int, count: int) -> Array:
    """1, c, c^2, ... modulo 2^64 for that axis' constant c."""
    factors = np.full(count, _AXES[axis % len(_AXES)], np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)
