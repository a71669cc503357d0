"""Starts the sum of each bucket over the data axis while the last microbatch's backward still
runs."""

from __future__ import annotations

from plait.autograd import SILENT, Observer
from plait.ops.parameter import Parameter
from plait.ops.position import Position
from plait.parallel.bucket import Bucket


class Reduction:
    """One step's gradient reduction. Buckets start in one fixed order on every rank; one that is
    ready early waits for its turn."""

    def __init__(self, buckets: list[Bucket], nodes: int, observer: Observer = SILENT):
        self._buckets, self._nodes, self._observer = buckets, nodes, observer
        self._bucket_of = {id(p): i for i, b in enumerate(buckets) for p in b.parameters}
        self._waiting = [len(bucket.parameters) for bucket in buckets]
        self._seen: set[int] = set()
        self._position: Position | None = None
        self._last = False
        self.started = 0

    def begin(self, position: Position, last: bool) -> None:
        self._position, self._last = position, last
        self._seen.clear()

    def ready(self, p: Parameter) -> None:
        """All uses of p in this microbatch are done."""
        assert self._position is not None
        self._seen.add(id(p))
        p.skip(self._position)
        if not self._last:
            return
        self._observer.ready(p)
        self._waiting[self._bucket_of[id(p)]] -= 1
        while self.started < len(self._waiting) and self._waiting[self.started] == 0:
            self._observer.started(self.started)
            self._buckets[self.started].start(self._nodes)
            self.started += 1

    def end(self) -> None:
        """Backward is over: parameters that no op used are ready too, in fixed order."""
        for bucket in self._buckets:
            for p in bucket.parameters:
                if id(p) not in self._seen:
                    self.ready(p)

    def finish(self) -> None:
        """Waits for all sums."""
        assert self.started == len(self._buckets)
        for bucket in self._buckets:
            bucket.finish()

    def progress(self) -> None:
        """Between backward's nodes: moves what has started along."""
        if self.started:
            self._buckets[0].data.progress()
