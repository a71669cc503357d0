"""Tied parameters: equal at all times, though each has gradient chains of its own, perhaps on
several stages.

Each reduces its own gradient over data; all of them are then added once, the original's first, then
those of its copies in the order of the model. Every holder makes the same update from the same sum,
so their bits stay equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from plait.backend import Array, empty, float32, kernels
from plait.comm import Communicator
from plait.parallel.bucket import Bucket


class Tie:
    """An original and its copies.

    holders: the stage of each, and the bucket that holds only it, None on other stages. Holders on
    this stage share the weights of the first of them, `home`; the others are `aliases`. copies:
    those here that are not the original.
    """

    def __init__(self, holders: Sequence[tuple[int, Bucket | None]], pipeline: Communicator):
        self._holders, self._pipeline = holders, pipeline
        here = [bucket for _, bucket in holders if bucket is not None]
        self.home = here[0] if here else None
        self.aliases = here[1:]
        self.copies = [bucket for _, bucket in holders[1:] if bucket is not None]
        for alias in self.aliases:
            alias.weights = here[0].weights
            alias.parameters[0].array = here[0].parameters[0].array

    def add_gradients(self) -> None:
        """Makes the gradient of every holder the sum of all."""
        if self.home is None:
            return
        stages = {stage for stage, bucket in self._holders if bucket is None}
        sends = [
            self._pipeline.send(bucket.gradient, stage, blocking=False)
            for _, bucket in self._holders
            if bucket is not None
            for stage in sorted(stages)
        ]
        gradients = [self._gradient(*holder) for holder in self._holders]
        for work in sends:
            work.wait()
        total = self.home.gradient
        kernels.add(gradients, total)
        for bucket in (self.home, *self.aliases):
            bucket.gradient = total

    def _gradient(self, stage: int, bucket: Bucket | None) -> Array:
        assert self.home is not None
        if bucket is not None:
            return bucket.gradient
        theirs = empty(self.home.gradient.shape, float32)
        self._pipeline.recv(theirs, stage)
        return theirs
