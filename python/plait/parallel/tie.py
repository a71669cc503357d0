"""Tied parameters: equal at all times, though each has gradient chains of its own, perhaps on two
stages.

Each reduces its own gradient over data; the two are then added once, the original's first. Both
holders make the same update from the same sum, so their bits stay equal.
"""

from __future__ import annotations

from plait.backend import empty, float32, kernels
from plait.comm import Communicator
from plait.parallel.bucket import Bucket


class Tie:
    """One pair. `original` and `copy` are the buckets that hold only these parameters, None where
    the stage does not have them; stages: where they live."""

    def __init__(
        self, original: Bucket | None, copy: Bucket | None, stages: tuple[int, int],
        pipeline: Communicator,
    ):  # fmt: skip
        self.original, self.copy, self.stages, self.pipeline = original, copy, stages, pipeline
        if original is not None and copy is not None:
            copy.weights = original.weights
            copy.parameters[0].array = original.parameters[0].array

    @property
    def same_stage(self) -> bool:
        return self.stages[0] == self.stages[1]

    def add_gradients(self) -> None:
        """Makes the gradient of both buckets (original's + copy's)."""
        if self.original is not None and self.copy is not None:
            _add(self.original, self.original.gradient, self.copy.gradient)
            self.copy.gradient = self.original.gradient
            return
        mine = self.original if self.original is not None else self.copy
        if mine is None:
            return
        other = self.stages[1] if mine is self.original else self.stages[0]
        theirs = empty(mine.gradient.shape, float32)
        send = self.pipeline.send(mine.gradient, other, blocking=False)
        self.pipeline.recv(theirs, other)
        send.wait()
        pair = (mine.gradient, theirs) if mine is self.original else (theirs, mine.gradient)
        _add(mine, *pair)


def _add(bucket: Bucket, original: object, copy: object) -> None:
    total = empty(bucket.gradient.shape, float32)
    kernels.add([original, copy], total)
    bucket.gradient = total
