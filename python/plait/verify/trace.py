"""A trace: what one rank computed in some steps, a few bytes of each tensor.

Two kinds of sums of 64 bits, both of which shards add up to. Of activations, one for every sample:
every element's mixed bits times a weight for each axis, powers of an odd constant, so that a shard
that starts elsewhere on an axis needs but a factor. Of parameters, kernels.fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from plait.backend import Array, kernels
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
    """`count` of `whole` elements of a parameter's global array."""

    whole: int
    count: int
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
        whole = array.ndim == 0 or len(array) != count
        each = array[None] if whole else array
        found = Samples(first, each.shape[1:], sample_sums(each), count if whole else 0)
        self.found.samples.setdefault(key, []).append(found)

    def pieces(self, key: Key, whole: int, parts: list[tuple[int, Array]]) -> None:
        count = sum(len(values) for _, values in parts)
        total = sum(kernels.fingerprint(np.ascontiguousarray(v), start) for start, v in parts)
        self.found.pieces[key] = Pieces(whole, count, total & MASK)


def sample_sums(array: Array) -> Array:
    """One sum for each array[i], modulo 2^64."""
    sums = np.empty(len(array), np.uint64)
    unsigned = np.dtype(f"u{array.dtype.itemsize}")
    for i, sample in enumerate(array):
        x = _mixed(np.ascontiguousarray(sample).view(unsigned).astype(np.uint64))
        for axis in reversed(range(sample.ndim)):
            x = (x * _powers(axis, sample.shape[axis])).sum(-1, dtype=np.uint64)
        sums[i] = x.reshape(())
    return sums


def moved(total: int, axis: int, start: int) -> int:
    """The sum of a shard whose elements lie `start` further on that axis."""
    return total * pow(_AXES[axis % len(_AXES)], start, MASK + 1) & MASK


def _mixed(x: Array) -> Array:
    """The finalizer of splitmix64, of x + 1: zeros count too."""
    x = x + np.uint64(1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Array = x ^ (x >> np.uint64(31))
    return result


def _powers(axis: int, count: int) -> Array:
    """1, c, c^2, ... modulo 2^64 for that axis' constant c."""
    factors = np.full(count, _AXES[axis % len(_AXES)], np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)
