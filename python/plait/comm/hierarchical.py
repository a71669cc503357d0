"""Collectives over several nodes of several ranks: inside each node, then across.

A rank of each node collects for every rank (machines.py). A sum adds inside a node only complete
nodes of the tree; the owner of a slice adds the rest. Three stages, each entered in the order in
which the collectives were started: the first windows, the messages across, the second windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from plait.backend.host import contiguous, empty
from plait.comm.combine import FLOAT32, Bounds, Reduction, adds
from plait.comm.communicator import Communicator
from plait.comm.exchange import SMALL
from plait.comm.machines import Machines
from plait.comm.mpi import Mpi, all_of
from plait.comm.topology import Topology
from plait.comm.work import Array, Poll, Steps, Turns

_REDUCE, _GATHER, _BROADCAST = 2, 3, 4  # tags of messages across; Mpi has its own


@dataclass(frozen=True)
class _Arriving:
    """What this rank collects, in rank order; its own piece of that, if any; who is expected."""

    held: Array
    own: Array | None
    requests: list[Any]


class Hierarchical(Communicator):
    """mpi: all ranks; nodes: the number of each rank's node."""

    transport = "hierarchical"

    def __init__(self, mpi: Mpi, topology: Topology, nodes: Sequence[int]):
        super().__init__(mpi.rank, mpi.size)
        self._mpi, self._topology = mpi, topology
        self._machines = Machines(mpi.rank, nodes)
        inside = [topology.connect(mpi.split(nodes[mpi.rank])) for _ in range(2)]
        assert inside[0] is not None
        assert inside[1] is not None
        self._first, self._second = inside[0], inside[1]
        self._first_turns, self._across_turns, self._second_turns = Turns(), Turns(), Turns()
        self._broken = False  # by a collective that ranks of this node disagreed about

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        return self._topology.connect(self._mpi.split(color, key))

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """An uninitialised array that the other ranks of this rank's node read in place."""
        return self._first.empty(shape, dtype)

    def abort(self, code: int) -> None:
        self._mpi.abort(code)

    def close(self) -> None:
        self._first.close()
        self._second.close()
        self._mpi.close()

    # --- the order of stages ------------------------------------------------------------------

    def _turn(self, turns: Turns, turn: int) -> Poll:
        def poll() -> bool:
            if self._broken:
                raise RuntimeError("ranks of this node disagreed about an earlier collective")
            return turns.now == turn

        return poll

    def _agreed(self, steps: Steps) -> Iterator[Poll]:
        """Steps inside this node. If its ranks disagree, other nodes wait for what will never come,
        and what is expected of those would take a later collective's place: that was all."""
        done = False
        try:
            yield from steps
            done = True
        finally:
            self._broken = self._broken or not done

    # --- reductions ---------------------------------------------------------------------------

    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        nodes = reduction.nodes
        counts, _ = reduction.plan()
        small = sum(counts) * nodes.dtype.itemsize * out.size <= SMALL
        if small or nodes.dtype.kind in "iu" or not adds(reduction, out):
            return self._mpi._all_reduce(reduction, out)
        return self._reduce_and_gather(reduction, out)

    def _reduce_and_gather(self, reduction: Reduction, out: Array) -> Steps:
        first, across, second = (
            self._first_turns.take(),
            self._across_turns.take(),
            self._second_turns.take(),
        )
        lengths, inner = reduction.lengths(), out.shape[1]
        arriving = self._arriving(lengths, out.dtype)
        own = empty((1, lengths[self.rank] // inner, inner), out.dtype)
        yield from self._reduce(reduction, own, first)
        yield from self._gather(own.reshape(-1), lengths, arriving, out.reshape(-1), across, second)

    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        if reduction.nodes.dtype.kind in "iu" or not adds(reduction, out):
            yield from self._mpi._reduce_scatter(reduction, out)
        else:
            yield from self._reduce(reduction, out, self._first_turns.take())

    def _reduce(self, reduction: Reduction, out: Array, turn: int) -> Steps:
        """out = this rank's slice of the sum."""
        bounds, machines = reduction.bounds, self._machines
        _, outer, _, inner = reduction.nodes.shape
        everywhere = machines.groups(reduction.leaves)
        arrived = [empty((len(found), *out.shape), FLOAT32) for found in everywhere]
        sources = zip(machines.collectors(self.rank), arrived)
        requests = self._mpi.expect(
            [(r, x.reshape(-1)) for r, x in sources if r != self.rank], _REDUCE
        )

        yield self._turn(self._first_turns, turn)
        served = machines.served
        start, stop = bounds[served.start], bounds[served.stop]
        partial = empty((len(everywhere[machines.own]), outer, stop - start, inner), FLOAT32)
        for inside, target in zip(machines.inside(reduction), partial):
            yield from self._agreed(self._first._reduce_scatter(inside, target))
        self._first_turns.now += 1

        pieces = []
        for rank in served:
            piece = partial[:, :, bounds[rank] - start : bounds[rank + 1] - start]
            if rank == self.rank:
                arrived[machines.own][:] = piece
            else:
                pieces.append((rank, contiguous(piece).reshape(-1)))
        yield all_of(requests + self._mpi.post(pieces, _REDUCE))
        machines.add_groups(reduction, arrived, self.rank, out)

    # --- moves --------------------------------------------------------------------------------

    def _all_gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        across, second = self._across_turns.take(), self._second_turns.take()
        arriving = self._arriving(lengths, x.dtype)
        yield from self._gather(x, lengths, arriving, out, across, second)

    def _arriving(self, lengths: Sequence[int], dtype: np.dtype[Any]) -> _Arriving:
        """Where what this rank collects for its node comes in; expected from now on."""
        served = self._machines.served
        offsets = [0, *accumulate(lengths[rank] for rank in served)]
        held = self._second.empty(offsets[-1], dtype)
        places = {rank: held[a:b] for rank, a, b in zip(served, offsets, offsets[1:])}
        others = [(rank, place) for rank, place in places.items() if rank != self.rank]
        return _Arriving(held, places.get(self.rank), self._mpi.expect(others, _GATHER))

    def _gather(
        self,
        x: Array,
        lengths: Sequence[int],
        arriving: _Arriving,
        out: Array,
        across: int,
        second: int,
    ) -> Steps:
        yield self._turn(self._across_turns, across)
        if arriving.own is not None:
            arriving.own[:] = x
        collectors = self._machines.collectors(self.rank)
        sent = self._mpi.post([(rank, x) for rank in collectors if rank != self.rank], _GATHER)
        self._across_turns.now += 1
        yield all_of(arriving.requests + sent)
        yield self._turn(self._second_turns, second)
        shares = self._machines.shares(lengths)
        yield from self._agreed(self._second._all_gather(arriving.held, shares, out))
        self._second_turns.now += 1

    def _broadcast(self, x: Array, root: int) -> Steps:
        second = self._second_turns.take()
        machines = self._machines
        leaders = [root if root in ranks else ranks[0] for ranks in machines.ranks]
        leader, requests = leaders[machines.own], []
        if self.rank == root:
            requests = self._mpi.post([(rank, x) for rank in leaders if rank != root], _BROADCAST)
        elif self.rank == leader:
            requests = self._mpi.expect([(root, x)], _BROADCAST)
        yield all_of(requests)
        yield self._turn(self._second_turns, second)
        yield from self._agreed(self._second._broadcast(x, machines.mates.index(leader)))
        self._second_turns.now += 1

    def _all_to_all(self, x: Array, sends: Bounds, out: Array, receives: Bounds) -> Steps:
        return self._mpi._all_to_all(x, sends, out, receives)

    def _send(self, x: Array, dest: int, tag: int) -> Steps:
        return self._mpi._send(x, dest, tag)

    def _recv(self, out: Array, source: int, tag: int) -> Steps:
        return self._mpi._recv(out, source, tag)

    def _barrier(self) -> Steps:
        return self._mpi._barrier()
