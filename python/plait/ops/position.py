"""Who the samples of a microbatch are, and where their gradients go.

The samples of a step are cut into data leaves; each leaf is one chain of additions, and leaves meet
in the tree (plait.comm.tree). A rank works through its run of leaves in order, so the chains still
open are a stack: a leaf is begun in the first free slot and merged as soon as its sibling is done.
Between microbatches only those that are still open need memory.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from plait.comm.tree import Leaves, merges


@dataclass(frozen=True)
class Segment:
    """The part of one data leaf that lies in one microbatch."""

    samples: slice  # of the microbatch
    slot: int  # of the stack of open chains
    begins: bool  # the leaf starts here: start at zero, do not continue the slot
    merges: int  # how often the stack's top two merge once this segment is done


@dataclass(frozen=True)
class Position:
    """A microbatch: `count` samples from global sample `first_sample` of step `step`."""

    step: int
    first_sample: int
    count: int
    training: bool
    seed: int = 0
    segments: tuple[Segment, ...] = ()
    sequence: int | None = None  # its length, if activations are cut along it over tensor ranks

    def watched(self) -> Watched:
        """The same, but it notes who asks for its step or samples."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Watched(**values)

    @property
    def slots(self) -> int:
        """How many chains are open at once within this microbatch."""
        return max((segment.slot for segment in self.segments), default=-1) + 1


class Watched(Position):
    """Notes in `asked` whether somebody asks for what differs from step to step."""

    asked: ClassVar[list[str]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("step", "first_sample"):
            Watched.asked.append(name)
        return super().__getattribute__(name)


@dataclass(frozen=True)
class Share:
    """The samples of one replica in every step, and its microbatches.

    batch: samples a step over all replicas; leaves: the data leaves and which rank owns which;
    microbatch: samples, or None for one microbatch of each leaf.
    """

    batch: int
    leaves: Leaves
    rank: int
    microbatch: int | None

    def __post_init__(self) -> None:
        if self.leaves.count > self.batch:
            raise ValueError(
                f"{self.leaves.count} data grains need at least as many samples in a step, "
                f"train.batch is {self.batch}: raise it or set numerics.grains"
            )

    def leaf_start(self, leaf: int) -> int:
        """The first sample of a data leaf."""
        return leaf * self.batch // self.leaves.count

    @property
    def start(self) -> int:
        return self.leaf_start(self.leaves.bounds[self.rank])

    @property
    def stop(self) -> int:
        return self.leaf_start(self.leaves.bounds[self.rank + 1])

    @cached_property
    def slots(self) -> int:
        """How many partial gradients are open at once between microbatches: the memory is slots x 4
        bytes a parameter."""
        return max(parts[-1].slot + 1 - parts[-1].merges for parts in self._segments)

    @property
    def nodes(self) -> int:
        """How many complete tree nodes are left at the end of a step, in slots 0, 1, ..."""
        return len(self.leaves.nodes(self.rank))

    @cached_property
    def largest(self) -> int:
        """Samples of the largest microbatch."""
        return max(stop - start for start, stop in pairwise(self._bounds))

    @property
    def usual(self) -> int:
        """Samples of a full microbatch, the same number on every rank."""
        if self.microbatch is None:
            return -(-self.batch // self.leaves.count)
        return min(self.microbatch, -(-self.batch // (len(self.leaves.bounds) - 1)))

    @cached_property
    def _bounds(self) -> list[int]:
        """Where microbatches start, and the end of the last."""
        if self.microbatch is None:
            starts = [self.leaf_start(leaf) for leaf in self.leaves.run(self.rank)]
        else:
            starts = list(range(self.start, self.stop, self.microbatch))
        return [*starts, self.stop]

    @cached_property
    def _segments(self) -> list[tuple[Segment, ...]]:
        run = self.leaves.run(self.rank)
        counts = merges(self.leaves.count, [(leaf, leaf + 1) for leaf in run])
        result: list[list[Segment]] = [[] for _ in self._bounds[1:]]
        depth = 0
        for leaf, count in zip(run, counts, strict=True):
            first, last = self.leaf_start(leaf), self.leaf_start(leaf + 1)
            for index, (start, stop) in enumerate(pairwise(self._bounds)):
                low, high = max(first, start), min(last, stop)
                if low < high:
                    samples = slice(low - start, high - start)
                    done = count if high == last else 0
                    result[index].append(Segment(samples, depth, low == first, done))
            depth += 1 - count
        return [tuple(parts) for parts in result]

    def microbatches(self, step: int, seed: int, sequence: int | None = None) -> list[Position]:
        """The positions of this replica's microbatches in one step, in sample order."""
        return [
            Position(step, start, stop - start, True, seed, segments, sequence)
            for (start, stop), segments in zip(pairwise(self._bounds), self._segments, strict=True)
        ]
