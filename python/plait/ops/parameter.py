"""A trainable array: its place in the global array, and its stack of gradient chains.

Sharding is always along axis 0, in ranges of global rows, stored tensor leaf by tensor leaf. A
parameter that every tensor rank holds whole ("replicated") has one chain of additions per tensor
leaf instead: leaf t sums over chunk t of each sample's positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from plait.autograd import SILENT, Observer
from plait.backend import Array, kernels
from plait.ops.position import Position, Segment


@dataclass(frozen=True)
class Init:
    """Initial values: normal(mean, std) as a function of (seed, name, global index); std 0:
    constant."""

    std: float = 0.0
    mean: float = 0.0


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
    array: Array = field(init=False)  # (local rows, ...) in the compute type
    grads: Array = field(init=False)  # float32 (slots, [tensor leaves,] local rows, ...)
    observer: Observer = field(init=False, default=SILENT, repr=False)
    _position: Position | None = field(init=False, default=None)

    is_parameter = True

    @property
    def statistic(self) -> bool:
        return self.momentum is not None

    @property
    def replicated(self) -> bool:
        return not self.leaf_rows

    @property
    def local_shape(self) -> tuple[int, ...]:
        return (sum(stop - start for start, stop in self.rows), *self.shape[1:])

    def segments(self, position: Position) -> Iterator[tuple[Segment, Array]]:
        """(segment, gradient buffer) for each data leaf in this microbatch, in order. The caller
        adds its sum over segment.samples, starting at zero if segment.begins; leaves are merged
        here."""
        if self._position is position:
            raise ValueError(
                f"parameter {self.name} was used twice in one microbatch: give each use a "
                "parameter of its own and tie them (Parameter.tied_to)"
            )
        self._position = position
        for segment in position.segments:
            yield segment, self.grads[segment.slot]
            self.observer.chain(self, position, segment)
            top = segment.slot
            for _ in range(segment.merges):
                top -= 1
                self._merge(top, top + 1)
                self.observer.merged(self, position, segment, top)

    def _merge(self, low: int, high: int) -> None:
        chains = (
            zip(self.grads[low], self.grads[high], strict=True)
            if self.replicated
            else [(self.grads[low], self.grads[high])]
        )
        for left, right in chains:
            kernels.add([left, right], left)

    def skip(self, position: Position) -> None:
        """Adds zero where no op of this microbatch used the parameter."""
        if self._position is not position:
            for segment, grad in self.segments(position):
                if segment.begins:
                    grad.fill(0)
