"""The communicator of one rank: every collective is an identity, and there is no MPI."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from plait.backend import assign, copied, share_memory
from plait.comm.combine import Bounds, Reduction
from plait.comm.communicator import Communicator
from plait.comm.tree import Leaves
from plait.comm.work import Array, Steps


class Alone(Communicator):
    """One rank. What it sends to itself it can receive, in order of sending per tag.

    end_job(code) ends the job that this rank is part of; left out, only this process.
    """

    transport = "alone"
    stream_ordered = True

    def __init__(self, leaves: Leaves | None = None, end_job: Callable[[int], None] | None = None):
        super().__init__(0, 1, leaves)
        self._end_job = end_job
        self._sent: dict[int, list[Array]] = {}

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        return None if color is None else Alone(end_job=self._end_job)

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if self._end_job is not None:
            self._end_job(code)
        os._exit(code)

    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        yield from self._reduce_scatter(reduction, out[None])

    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        parts = list(reduction.nodes)
        if share_memory(reduction.nodes, out):
            parts = [copied(part) for part in parts]
        reduction.combine(parts, 0, reduction.bounds[-1], out)
        yield from ()

    def _all_gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        assign(out, x)
        yield from ()

    def _all_to_all(self, x: Array, sends: Bounds, out: Array, receives: Bounds) -> Steps:
        assign(out, x)
        yield from ()

    def _broadcast(self, x: Array, root: int) -> Steps:
        yield from ()

    def _send(self, x: Array, dest: int, tag: int) -> Steps:
        self._sent.setdefault(tag, []).append(copied(x))
        yield from ()

    def _recv(self, out: Array, source: int, tag: int) -> Steps:
        yield lambda: bool(self._sent.get(tag))
        assign(out, self._sent[tag].pop(0))

    def _barrier(self) -> Steps:
        yield from ()
