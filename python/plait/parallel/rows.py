"""The sum over data leaves of a gradient that is zero in most rows: of an embedding, where only the
tokens that occurred have any.

Ranks tell each other which rows they have; only those cross, to the owner of their place, who adds
them in the tree's order. Adding a row of zeros changes no bit, so neither does leaving it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise

import numpy as np

from plait.backend import Array, empty, float32, kernels, zeros
from plait.comm import Communicator, Work
from plait.comm.tree import merges


class RowSum:
    """chains (nodes, rows, width) float32: this rank's complete nodes of the tree, zero outside the
    rows `touched` (sorted). Rank r owns the elements [bounds[r], bounds[r + 1]) of (rows, width).

    sparse: whether the ranks together have less than half of their rows; else this is not worth
    the while, and nothing but the numbers of rows has moved. All ranks make one, and then the same
    calls.
    """

    def __init__(
        self, data: Communicator, chains: Array, touched: Array, bounds: Sequence[int]
    ) -> None:
        self._data, self._chains = data, chains
        self._work: Work | None = None
        ends = [0, *accumulate(data.all_gather(np.array([len(touched)], np.int64)).tolist())]
        _, rows, width = chains.shape
        self.sparse = 2 * ends[-1] < data.size * rows
        if not self.sparse:
            return
        every = data.all_gather(touched, bounds=ends)
        self._touched: list[Array] = [every[a:b] for a, b in pairwise(ends)]
        # A row that a bound cuts belongs to both sides.
        self._owned = [(a // width, -(-b // width)) for a, b in pairwise(bounds)]
        self._nodes = [data.leaves.nodes(rank) for rank in range(data.size)]

    def _part(self, rank: int, owner: int) -> Array:
        """The rows of `rank` that `owner` adds."""
        touched = self._touched[rank]
        start, stop = np.searchsorted(touched, self._owned[owner])
        return touched[start:stop]

    def _union(self, owner: int) -> Array:
        """The rows that `owner` adds."""
        parts = [self._part(rank, owner) for rank in range(self._data.size)]
        return np.unique(np.concatenate(parts))

    def start(self) -> None:
        """Sends each owner its rows."""
        own, ranks = self._data.rank, range(self._data.size)
        width = self._chains.shape[2]
        none = self._touched[own][:0]
        to = [self._part(own, owner) if owner != own else none for owner in ranks]
        of = [self._part(rank, own) if rank != own else none for rank in ranks]
        x = [self._chains[:, part].reshape(-1, width) for part in to]
        self._work = self._data.all_to_all(
            np.concatenate(x),
            [0, *accumulate(map(len, x))],
            [0, *accumulate(len(n) * len(part) for n, part in zip(self._nodes, of))],
            blocking=False,
        )

    def finish(self, everywhere: bool) -> None:
        """Writes the sums of this rank's rows, or of all rows, into chains[0]."""
        assert self._work is not None
        arrived = self._work.wait()
        own, leaves = self._data.rank, self._data.leaves
        union = self._union(own)
        width = arrived.shape[1]
        parts = []
        start = 0
        for rank, nodes in enumerate(self._nodes):
            touched = self._part(rank, own)
            places = np.searchsorted(union, touched)
            for node in range(len(nodes)):
                part = zeros((len(union), width), float32)
                if rank == own:
                    part[places] = self._chains[node, touched]
                else:
                    part[places] = arrived[start : start + len(touched)]
                    start += len(touched)
                parts.append(part)
        total = empty((len(union), width), float32)
        order = merges(leaves.count, list(chain(*self._nodes)))
        kernels.tree_sum(parts, order, None, total)
        if everywhere:
            unions = [self._union(rank) for rank in range(self._data.size)]
            total = self._data.all_gather(total, bounds=[0, *accumulate(map(len, unions))])
            union = np.concatenate(unions)
        self._chains[0, union] = total
