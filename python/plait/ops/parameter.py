"""A trainable array: its place in the global array, and its stack of gradient chains.

Sharding is always along axis 0, in ranges of global rows, stored tensor leaf by tensor leaf. A
parameter that every tensor rank holds whole ("replicated") has one chain of additions per tensor
leaf instead: leaf t sums over chunk t of each sample's positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from plait.autograd import SILENT, Observer
from plait.backend import Array, empty, fill, float32, kernels
from plait.ops.position import Position, Segment

_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Init:
    """Initial values: normal(mean, std) as a function of (seed, name, global index); std 0:
    constant."""

    std: float = 0.0
    mean: float = 0.0


@dataclass(frozen=True)
class Run:
    """Samples of a microbatch, cut into leaves at `bounds`: leaf 0 goes to `slot` of the stack,
    or continues the chain that is there; after leaf i the top two merge merges[i] times. touched:
    of a parameter by rows, the sorted ones that have anything by the end of it."""

    samples: slice
    bounds: list[int]
    merges: list[int]
    slot: int
    continues: bool
    stack: Array
    touched: Array | None


@dataclass(eq=False)
class Parameter:
    """name and shape are global; `rows` are the global row ranges of the local array, in its order;
    `leaf_rows` cuts the local rows into tensor leaves (empty for a replicated parameter)."""

    name: str
    shape: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]
    leaf_rows: tuple[int, ...] = ()
    init: Init = Init()
    true_rows: int | None = None  # rows from here on are padding: zero, and in no checkpoint
    tied_to: str | None = None  # its value is that of the parameter of this name
    # A running statistic, not trained: each step moves it by this share towards the step's mean
    # over samples, for which ops add samples x value to its gradient. Always float32.
    momentum: float | None = None
    by_rows: bool = False  # most rows get no gradient in a step, as those of an embedding
    array: Array = field(init=False)  # (local rows, ...) in the compute type
    # float32 (slots, [tensor leaves,] local rows, ...): what is open between microbatches
    grads: Array = field(init=False)
    observer: Observer = field(init=False, default=SILENT, repr=False)
    _position: Position | None = field(init=False, default=None)
    _spare: Array | None = field(init=False, default=None, repr=False)  # slots beyond grads
    _touched: list[Array] = field(init=False, default_factory=list, repr=False)

    is_parameter = True

    def __post_init__(self) -> None:
        if self.by_rows and self.replicated:
            raise ValueError(
                f"parameter {self.name} is by_rows and replicated: by_rows is for one that is "
                "split over the tensor axis (Build.split)"
            )

    @property
    def statistic(self) -> bool:
        return self.momentum is not None

    @property
    def decays(self) -> bool:
        """Whether weight decay applies to it: to matrices, not to biases and norms."""
        return len(self.shape) > 1

    @property
    def replicated(self) -> bool:
        return not self.leaf_rows

    @property
    def local_shape(self) -> tuple[int, ...]:
        return (sum(stop - start for start, stop in self.rows), *self.shape[1:])

    def segments(
        self, position: Position, rows: Array | None = None
    ) -> Iterator[tuple[Segment, Array]]:
        """(segment, gradient buffer) for each data leaf in this microbatch, in order. The caller
        adds its sum over segment.samples, starting at zero if segment.begins; leaves are merged
        here. rows: the local rows that get anything; left out, all."""
        self._use(position, rows)
        if (spare := position.slots - len(self.grads)) > 0:
            self._spare = empty((spare, *self.grads.shape[1:]), float32)
        for segment in position.segments:
            yield segment, self.slot(segment.slot)
            self.observer.chain(self, position, segment)
            top = segment.slot
            for _ in range(segment.merges):
                top -= 1
                self._merge(self.slot(top), self.slot(top + 1))
                self.observer.merged(self, position, segment, top)
        self._spare = None

    def runs(self, position: Position, rows: Array | None = None) -> Iterator[Run]:
        """For kernels that merge leaves themselves: what of this microbatch to add at one go. rows
        as in segments()."""
        if self.observer.hears_chains:
            for part, grad in self.segments(position, rows):
                bounds = [0, part.samples.stop - part.samples.start]
                yield Run(part.samples, bounds, [0], 0, not part.begins, grad[None], self._so_far())
            return
        self._use(position, rows)
        parts = position.segments
        if parts:
            bounds = [0, *(part.samples.stop for part in parts)]
            merges = [part.merges for part in parts]
            first = parts[0]
            yield Run(
                slice(None), bounds, merges, first.slot, not first.begins, self.grads,
                self._so_far(),
            )  # fmt: skip

    def slot(self, slot: int) -> Array:
        """The chains in a slot, [tensor leaves,] local rows, ...; beyond those that stay between
        microbatches only while segments() runs."""
        stack, first = self.grads, 0
        if slot >= len(self.grads):
            assert self._spare is not None
            stack, first = self._spare, len(self.grads)
        chains: Array = stack[slot - first]
        return chains

    def touched(self) -> Array:
        """The local rows, sorted, that got anything since this was last asked. Of by_rows only."""
        found = self._so_far()
        self._touched.clear()
        return _NO_ROWS if found is None else found

    def _so_far(self) -> Array | None:
        if not self.by_rows:
            return None
        self._touched[:] = [np.unique(np.concatenate([_NO_ROWS, *self._touched]))]
        return self._touched[0]

    def _use(self, position: Position, rows: Array | None) -> None:
        if self._position is position:
            raise ValueError(
                f"parameter {self.name} was used twice in one microbatch: give each use a "
                "parameter of its own and tie them (Parameter.tied_to)"
            )
        self._position = position
        if self.by_rows:
            self._touched.append(np.arange(self.local_shape[0]) if rows is None else rows)

    def _merge(self, low: Array, high: Array) -> None:
        pairs = zip(low, high, strict=True) if self.replicated else [(low, high)]
        for left, right in pairs:
            kernels.add([left, right], left)

    def skip(self, position: Position) -> None:
        """Adds zero where no op of this microbatch used the parameter."""
        if self._position is not position:
            for segment, grad in self.segments(position, _NO_ROWS):
                if segment.begins:
                    fill(grad, 0)
