"""Collectives of device arrays over several nodes of several ranks: inside each node in peer
memory, across by what moves bytes between nodes.

A rank of each node collects for every rank (machines.py), so every byte crosses between two nodes
once. A sum adds inside a node only complete nodes of the tree; the owner of a slice adds the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike

from plait import backend
from plait.backend import assign, beside, on_device
from plait.comm.combine import FLOAT32, Bounds, Reduction, adds, even_bounds
from plait.comm.communicator import Communicator
from plait.comm.compared import Compared, compared
from plait.comm.device_memory import DeviceMemory
from plait.comm.exchange import SMALL, offsets_of
from plait.comm.machines import Machines
from plait.comm.staged import Staged
from plait.comm.work import Array, Poll, Steps, run


class HierarchicalDevice(Compared):
    """The ranks of `inner`, which does what is not a device's. Collective.

    mates: those of this rank's node, over memory; across: all of them, who do what need not be
    added, has no order, or is little; also what no kernel of peers adds. close() closes all.
    """

    def __init__(
        self, inner: Communicator, memory: DeviceMemory, mates: Staged, across: Communicator
    ):
        super().__init__(inner)
        self._memory, self._mates, self._across = memory, mates, across
        self._machines = Machines(inner.rank, inner.nodes)
        self.outside = mates.outside
        told = inner.all_gather_object((mates.size, mates.transport, mates.stream_ordered))
        inside = max(transport for size, transport, _ in told if size > 1)
        self.transport = f"hierarchical: {inside}, {across.transport.rpartition(', ')[2]}"
        self.stream_ordered = across.stream_ordered and all(ordered for _, _, ordered in told)

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        from plait.comm.for_device import for_device

        found = self.inner.split(color, key)
        return None if found is None else for_device(found, self._memory)

    def abort(self, code: int) -> None:
        try:
            self._mates.abort(code)
        finally:
            self._across.abort(code)

    def close(self) -> None:
        self._mates.close()
        if self.owned is not None:
            self.owned.close(self.inner)
        self._across.close()  # and inner

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """An uninitialised array of the device, as the peers of this rank's node like it."""
        return self._mates.empty(shape, dtype)

    # --- sums -----------------------------------------------------------------------------------

    @compared
    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        if not on_device(out):
            return self.inner._all_reduce(reduction, out)
        counts, _ = reduction.plan()
        small = sum(counts) * reduction.nodes.itemsize * out.size <= SMALL
        if small or not _sums_floats(reduction, out):
            return self._across._all_reduce(reduction, out)
        return self._in_one_go(self._reduce_and_gather(reduction, out))

    @compared
    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        if not on_device(out):
            return self.inner._reduce_scatter(reduction, out)
        if not _sums_floats(reduction, out):
            return self._across._reduce_scatter(reduction, out)
        return self._in_one_go(self._reduce(reduction, out))

    def _reduce_and_gather(self, reduction: Reduction, out: Array) -> Steps:
        start, stop = reduction.bounds[self.rank], reduction.bounds[self.rank + 1]
        own = beside(out, (1, stop - start, out.shape[1]), out.dtype)
        yield from self._reduce(reduction, own)
        yield from self._gather(own.reshape(-1), reduction.lengths(), out.reshape(-1))

    def _reduce(self, reduction: Reduction, out: Array) -> Steps:
        """out = this rank's slice of the sum."""
        machines, bounds = self._machines, reduction.bounds
        everywhere = [len(found) for found in machines.groups(reduction.leaves)]
        if sum(everywhere) == sum(reduction.plan()[0]):  # nothing to add before it crosses
            yield from self._across._reduce_scatter(reduction, out)
            return
        _, outer, _, inner = reduction.nodes.shape
        served = machines.served
        start, stop = bounds[served.start], bounds[served.stop]
        shape = everywhere[machines.own], outer, stop - start, inner
        partial = beside(out, shape, FLOAT32)
        for inside, target in zip(machines.inside(reduction), partial):
            yield from self._mates._reduce_scatter(inside, target)

        cuts = [(bounds[rank] - start, bounds[rank + 1] - start) for rank in served]
        pieces = dict(zip(served, (partial[:, :, a:b] for a, b in cuts)))
        counts = dict(zip(machines.collectors(self.rank), everywhere))
        receives = [counts.get(rank, 0) * out.size for rank in range(self.size)]
        arrived = beside(out, sum(receives), FLOAT32)
        yield from self._exchange(pieces, arrived, receives)
        places = offsets_of(receives)
        parts = [
            arrived[places[rank] : places[rank + 1]].reshape(count, *out.shape)
            for rank, count in counts.items()
        ]
        machines.add_groups(reduction, parts, self.rank, out)

    # --- moves ----------------------------------------------------------------------------------

    @compared
    def _all_gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        if not on_device(out):
            return self.inner._all_gather(x, lengths, out)
        return self._in_one_go(self._gather(x, lengths, out))

    def _gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        machines, offsets = self._machines, offsets_of(lengths)
        served = machines.served
        receives = [n if rank in served else 0 for rank, n in enumerate(lengths)]
        held = out[offsets[served.start] : offsets[served.stop]]
        yield from self._exchange(dict.fromkeys(machines.collectors(self.rank), x), held, receives)
        yield from self._mates._all_gather(held, machines.shares(lengths), out)

    @compared
    def _broadcast(self, x: Array, root: int) -> Steps:
        if not on_device(x):
            return self.inner._broadcast(x, root)
        return self._in_one_go(self._spread(x, root))

    def _spread(self, x: Array, root: int) -> Steps:
        """The ranks of the root's node have all of it and send each their slice to every node."""
        machines = self._machines
        home = next(ranks for ranks in machines.ranks if root in ranks)
        if root in machines.mates:
            yield from self._mates._broadcast(x, machines.mates.index(root))
        pieces: dict[int, Array] = {}
        receives = [0] * self.size
        cut, own = even_bounds(x.size, len(home)), even_bounds(x.size, len(machines.mates))
        for ranks in machines.ranks:
            if ranks == home:
                continue
            bounds = even_bounds(x.size, len(ranks))
            for i, source in enumerate(home):
                for j, rank in enumerate(ranks):
                    a, b = max(cut[i], bounds[j]), min(cut[i + 1], bounds[j + 1])
                    if source == self.rank:
                        pieces[rank] = x[a : max(a, b)]
                    elif rank == self.rank:
                        receives[source] = max(b - a, 0)
        held = x[own[machines.place] : own[machines.place + 1]][: sum(receives)]
        yield from self._exchange(pieces, held, receives)
        if root not in machines.mates:
            lengths = [b - a for a, b in pairwise(own)]
            yield from self._mates._all_gather(held, lengths, x)

    def _exchange(self, pieces: dict[int, Array], out: Array, receives: Sequence[int]) -> Steps:
        """Sends pieces to ranks; out flat = what comes, receives[r] elements from rank r."""
        sends = [pieces[rank].size if rank in pieces else 0 for rank in range(self.size)]
        x = beside(out, sum(sends), out.dtype)
        places = offsets_of(sends)
        for rank, piece in pieces.items():
            assign(x[places[rank] : places[rank + 1]].reshape(piece.shape), piece)
        yield from self._across._all_to_all(x, tuple(places), out, tuple(offsets_of(receives)))

    @compared
    def _all_to_all(self, x: Array, sends: Bounds, out: Array, receives: Bounds) -> Steps:
        way = self._across if on_device(out) else self.inner
        return way._all_to_all(x, sends, out, receives)

    def _send(self, x: Array, dest: int, tag: int) -> Steps:
        if on_device(x) and dest in self._machines.mates:
            return self._mates._send(x, self._machines.mates.index(dest), tag)
        return self._across._send(x, dest, tag)

    def _recv(self, out: Array, source: int, tag: int) -> Steps:
        if on_device(out) and source in self._machines.mates:
            return self._mates._recv(out, self._machines.mates.index(source), tag)
        return self._across._recv(out, source, tag)

    def _barrier(self) -> Steps:
        backend.wait()
        yield from super()._barrier()

    def _refused(self, x: Array | None) -> Steps:
        if self.checked or x is None or not on_device(x):
            return super()._refused(x)
        return self._mates._refused(x)  # they end then, and the job with them

    def _in_one_go(self, steps: Steps) -> Steps:
        """A kernel of peers waits in its stream for theirs, so all ranks launch all of theirs in
        one order. Where a stage has to wait on the host the collectives that are started later,
        on whatever communicator, therefore wait until it is done."""
        return steps if self.stream_ordered else _at_once(steps)


def _at_once(steps: Steps) -> Iterator[Poll]:
    run("stages", steps, None)
    yield from ()


def _sums_floats(reduction: Reduction, out: Array) -> bool:
    return adds(reduction, out) and out.dtype.kind not in "iu"
