"""How far one tensor is from what it should be: its values at both layouts, from a second run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from plait.backend import Array
from plait.mesh import Coordinates
from plait.train.engine import Engine
from plait.verify.compare import Difference, joints
from plait.verify.key import RESULT, Key
from plait.verify.listener import Listener


@dataclass
class Values:
    """What one rank holds of one tensor: an activation, or pieces of a parameter and where they
    start."""

    rank: int
    at: Coordinates
    host: str
    activations: list[Array] = field(default_factory=list)
    pieces: list[tuple[int, Array]] = field(default_factory=list)


class Catcher(Listener):
    """Keeps the values of the tensor that differs."""

    def __init__(self, engine: Engine, host: str, wanted: Difference):
        super().__init__(engine)
        mesh = engine.mesh
        self._wanted = wanted
        self.found = Values(mesh.world.rank, mesh.coordinates, host)

    def samples(self, key: Key, first: int, array: Array, count: int) -> None:
        sample = self._wanted.sample
        if key == self._wanted.key:
            if array.ndim and len(array) == count and first <= sample < first + count:
                self.found.activations.append(array[sample - first].copy())
            elif first == sample and (array.ndim == 0 or len(array) != count):
                self.found.activations.append(array.copy())

    def pieces(self, key: Key, whole: int, parts: list[tuple[int, Array]]) -> None:
        if key == self._wanted.key:
            self.found.pieces = [
                (start, values.view(np.float64) if key.phase == RESULT else values.copy())
                for start, values in parts
            ]


def distances(reference: Sequence[Values], other: Sequence[Values]) -> list[str]:
    """A line for each rank that holds something else than the reference does."""
    found = []
    for values, expected in _pairs(reference, other):
        for what, (mine, want) in enumerate(zip(values_of(values), expected, strict=True)):
            if mine.tobytes() != want.tobytes():
                start = values.pieces[what][0] if values.pieces else None
                found.append(f"{who(values)}: {_how_far(mine, want, start)}")
                break
    return found


def who(values: Values) -> str:
    at = values.at
    return (
        f"rank {values.rank} (data {at.data}, tensor {at.tensor}, pipeline {at.pipeline}) on host "
        f"{values.host}"
    )


def values_of(values: Values) -> list[Array]:
    return values.activations or [part for _, part in values.pieces]


def _pairs(
    reference: Sequence[Values], other: Sequence[Values]
) -> list[tuple[Values, list[Array]]]:
    """Of every rank that has a part, what the reference has in its place."""
    if any(values.pieces for values in other):
        whole = _flat(reference)
        return [(v, [whole[a : a + len(x)] for a, x in v.pieces]) for v in other if v.pieces]
    groups: dict[int, list[Values]] = {}
    for values in sorted(other, key=lambda values: values.at.tensor):
        if values.activations:
            groups.setdefault(values.at.pipeline, []).append(values)
    first = sorted((v for v in reference if v.activations), key=lambda v: v.at.tensor)
    first = [v for v in first if v.at.pipeline == first[0].at.pipeline]
    found = []
    for group in groups.values():
        parts = _expected([v.activations[0] for v in first], [v.activations[0] for v in group])
        found += [(v, [part]) for v, part in zip(group, parts, strict=True)]
    return found


def _flat(reference: Sequence[Values]) -> Array:
    parts = [piece for values in reference for piece in values.pieces]
    whole = np.empty(max(start + len(x) for start, x in parts), parts[0][1].dtype)
    for start, x in parts:
        whole[start : start + len(x)] = x
    return whole


def _expected(have: list[Array], parts: list[Array]) -> list[Array]:
    """The reference's values for each tensor rank's part; shards lie end to end on one axis."""
    shapes = [part.shape for part in parts]
    if [x.shape for x in have] == shapes:
        return have
    wholes = [have[0]]
    if len(have) > 1:
        wholes += [np.concatenate(have, axis) for axis in joints([x.shape for x in have])]
    for whole in wholes:
        if all(shape == whole.shape for shape in shapes):
            return [whole] * len(parts)
        for axis in joints([whole.shape, *shapes]):
            ends = np.cumsum([shape[axis] for shape in shapes])
            if ends[-1] == whole.shape[axis]:
                return list(np.split(whole, ends[:-1], axis))
    return wholes[-1:] * len(parts)  # no part of it


def _how_far(mine: Array, want: Array, start: int | None) -> str:
    if mine.shape != want.shape:
        return f"shape {mine.shape} where {want.shape} is expected"
    differs = mine.view(f"u{mine.dtype.itemsize}") != want.view(f"u{want.dtype.itemsize}")
    places = np.argwhere(np.atleast_1d(differs))
    where = tuple(int(i) for i in places[0])
    a, b = (np.atleast_1d(x)[where] for x in (mine, want))
    at = f"[{', '.join(map(str, where))}]" if start is None else f"element {start + where[0]}"
    text = f"{len(places)} of {mine.size} elements differ, the first at {at}: {a} instead of {b}"
    if mine.dtype.kind in "iub":
        return text
    if not (np.isfinite(mine).all() and np.isfinite(want).all()):
        return f"{text}; not all are finite"
    apart = np.abs(mine.astype(np.float64) - want.astype(np.float64)).max()
    steps = np.abs(_ordered(mine) - _ordered(want)).max()
    return f"{text}; at most {apart:.3g} apart, {steps} units in the last place"


def _ordered(x: Array) -> Array:
    """Integers in the order of the floats, one apart where those are neighbours."""
    bits = x.view(f"i{x.dtype.itemsize}")
    low = np.int64(np.iinfo(bits.dtype).min)
    result: Array = np.where(bits < 0, low - bits, bits.astype(np.int64))
    return result
