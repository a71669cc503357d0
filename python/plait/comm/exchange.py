"""Reductions over a transport that moves bytes: float sums are added here.

A reduction has two stages: every rank sends the others their slices and adds its own, then the
slices are gathered, in the order in which the collectives were started. Little is gathered whole,
and added by every rank.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise

from plait.backend import assign, beside, copied, share_memory
from plait.comm.combine import Reduction
from plait.comm.communicator import Communicator
from plait.comm.tree import Leaves
from plait.comm.work import Array, Poll, Steps, Turns

SMALL = 1 << 14  # bytes of all nodes of all ranks: below, every rank adds everything


class Exchange(Communicator):
    def __init__(self, rank: int, size: int, leaves: Leaves | None = None):
        super().__init__(rank, size, leaves)
        self._turns = Turns()  # of second stages

    @abstractmethod
    def _exchange(
        self, x: Array, send_offsets: list[int], sends: list[int], out: Array,
        receive_offsets: list[int], receives: list[int], largest: int,
    ) -> Poll:  # fmt: skip
        """all_to_all of elements of flat arrays, nothing to itself. largest, the same on all ranks:
        no rank sends or receives more elements."""

    @abstractmethod
    def _gather_again(self, own: Array, lengths: Sequence[int], out: Array) -> Poll:
        """all_gather of a second stage; own is its place in the flat out."""

    @abstractmethod
    def _unordered(self, reduction: Reduction, out: Array) -> Steps:
        """all_reduce of integers, whose order is nobody's concern; out is flat."""

    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        nodes = reduction.nodes
        if reduction.op != "sum" or nodes.dtype.kind in "iu":
            yield from self._unordered(reduction, out.reshape(-1))
            return
        counts, _ = reduction.plan()
        if sum(counts) * nodes[0].nbytes <= SMALL:
            parts = beside(out, (sum(counts), *out.shape), nodes.dtype)
            lengths = [count * out.size for count in counts]
            yield from self._all_gather(nodes.reshape(-1), lengths, parts.reshape(-1))
            reduction.combine(list(parts), 0, reduction.bounds[-1], out)
            return
        turn = self._turns.take()
        start, stop = reduction.bounds[self.rank], reduction.bounds[self.rank + 1]
        yield from self._reduce_scatter(reduction, out[None, start:stop])
        yield lambda: self._turns.now == turn
        gather = self._gather_again(out[start:stop], reduction.lengths(), out.reshape(-1))
        self._turns.now += 1
        yield gather

    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        nodes, bounds, rank = reduction.nodes, reduction.bounds, self.rank
        counts, _ = reduction.plan()
        lengths = reduction.lengths()
        start, stop = bounds[rank], bounds[rank + 1]
        # Nobody sends to itself: the own nodes are parts as they lie, or copies of them.
        sends = [len(nodes) * length for length in lengths]
        receives = [count * lengths[rank] for count in counts]
        sends[rank] = receives[rank] = 0
        if len(nodes) * nodes.shape[1] == 1:
            buffer, send_bounds = nodes.reshape(-1), offsets_of(lengths)[:-1]
        else:
            buffer, send_bounds = beside(nodes, sum(sends), nodes.dtype), offsets_of(sends)[:-1]
            for other, (a, b) in enumerate(pairwise(bounds)):
                if other != rank:
                    piece = buffer[send_bounds[other] :][: sends[other]]
                    shape = nodes.shape[0], nodes.shape[1], b - a, nodes.shape[3]
                    assign(piece.reshape(shape), nodes[:, :, a:b])
        arrived = beside(nodes, sum(receives), nodes.dtype)
        offsets = offsets_of(receives)
        largest = sum(counts) * nodes[0].size
        yield self._exchange(buffer, send_bounds, sends, arrived, offsets[:-1], receives, largest)
        parts: list[Array] = []
        for other in range(self.size):
            if other == rank:
                own = nodes[:, :, start:stop]
                shared = share_memory(nodes, out)
                parts += [copied(x) if shared or not x.flags.c_contiguous else x for x in own]
            elif lengths[rank]:
                found = arrived[offsets[other] : offsets[other + 1]]
                parts += list(found.reshape(counts[other], *out.shape))
        reduction.combine(parts, start, stop, out)


def offsets_of(lengths: Sequence[int]) -> list[int]:
    return [0, *accumulate(lengths)]
