"""Nothing may change between two updates: weights, masters and optimizer state check themselves.

What several replicas hold is compared among them (replicas.py); a shard of the optimizer's state
has one owner, who can only compare it with what it was. Each step looks at another part.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from plait.autograd import Observer
from plait.backend import Array, float32, kernels
from plait.train.engine import Engine


class StateChanged(RuntimeError):
    """The message names parameter, rank and host."""


class StateCheck(Observer):
    """After each update takes sums of 64 bits (kernels.fingerprint) over one part in `every` of
    what this rank keeps, and compares them before the next update: in `every` steps all of it has
    been looked at once."""

    def __init__(self, engine: Engine, every: int):
        self.engine, self.every = engine, every
        self._step = 0
        self._taken: list[int] = []
        engine.observe(self)

    def updated(self) -> None:
        self._step += 1
        self._taken = [kernels.fingerprint(part, 0) for _, part in self._parts()]

    def replaced(self) -> None:
        self._taken = []

    def reduced(self) -> None:
        """Raises StateChanged on the rank where something did, and there alone."""
        if not self._taken:
            return
        for (what, part), before in zip(self._parts(), self._taken, strict=True):
            if kernels.fingerprint(part, 0) != before:
                raise StateChanged(
                    f"{what} has changed since its last update: rank {self.engine.mesh.world.rank} "
                    f"on host {socket.gethostname()} has broken memory, or something wrote there"
                )

    def _parts(self) -> Iterator[tuple[str, Array]]:
        """What this step looks at: a name and values, within one parameter."""
        number = self._step % self.every
        for index, bucket in enumerate(self.engine.buckets):
            arrays = {"the master": self.engine.master[index]}
            arrays |= {f"the {kind} moment": x for kind, x in self.engine.state[index].items()}
            if bucket.weights.dtype != float32:
                arrays["the weight"] = bucket.weights[bucket.own]
            own = bucket.own
            size = own.stop - own.start
            where = slice(*(own.start + (number + i) * size // self.every for i in (0, 1)))
            for span in bucket.spans(where):
                for kind, array in arrays.items():
                    part = array[span.start - own.start : span.stop - own.start]
                    yield f"{kind} of {span.parameter.name}", part
