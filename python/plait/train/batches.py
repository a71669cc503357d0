"""A replica's samples of each step: while a step computes, those of the next are read."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait

from plait.backend import Array
from plait.data import Dataset, Sampler
from plait.ops.position import Share

Batch = tuple[Array, Array]  # inputs, targets


class Batches:
    """Dataset.batch runs on one thread at a time, most often not the caller's; what it raises comes
    to who asks for that step."""

    def __init__(self, dataset: Dataset, sampler: Sampler, share: Share):
        self._dataset, self._sampler, self._share = dataset, sampler, share
        self._reader = ThreadPoolExecutor(1, "plait-batches")
        self._ahead: tuple[int, Future[Batch]] | None = None

    def take(self, step: int, last: bool) -> Batch:
        """The samples of `step`; unless it is the last one, reading of the next begins."""
        ahead = self._ahead
        if ahead is None or ahead[0] != step:  # the first, or one after a checkpoint was loaded
            ahead = self._begin(step)
        batch = ahead[1].result()
        self._ahead = None
        if not last:
            self._begin(step + 1)
        return batch

    def _begin(self, step: int) -> tuple[int, Future[Batch]]:
        """After what is being read, if anything is."""
        self._ahead = step, self._reader.submit(self._read, step)
        return self._ahead

    def settle(self) -> None:
        """Waits until nothing is being read: the data set is the caller's."""
        if self._ahead is not None:
            wait([self._ahead[1]])

    def _read(self, step: int) -> Batch:
        indices = self._sampler.indices(step, self._share.start, self._share.stop)
        return self._dataset.batch(indices)
