"""Collectives of the ranks of one node, over memory that all of them map.

The windows of csrc/peer do the work, one collective at a time in the order of their start;
messages, and the few types that a window cannot add, take MPI.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from plait.backend.host import kernels
from plait.comm.combine import Bounds, Reduction, adds
from plait.comm.communicator import Communicator
from plait.comm.mpi import Mpi
from plait.comm.topology import Topology
from plait.comm.work import Array, Poll, Quick, Steps, Turns, quick_us, spin_us

STAGING = 1 << 20  # bytes of one staging buffer of a communicator; each rank has two
_SUSPICIOUS = 1.0  # seconds of waiting between looks at whether a peer still lives


class Node(Communicator):
    """mpi: the same ranks over MPI; places: the node rank of each."""

    transport = "node"

    def __init__(self, mpi: Mpi, topology: Topology, places: Sequence[int]):
        super().__init__(mpi.rank, mpi.size)
        assert topology.memory is not None
        self._mpi, self._topology, self._memory = mpi, topology, topology.memory
        self._places = tuple(places)
        mappings = [self._memory.mappings[place] for place in places]
        self._window = kernels.Window(self._memory.arena, mappings, mpi.rank, STAGING)
        self._window.connect(mpi.all_gather(np.array([self._window.offset], np.int64)).tolist())
        self._turns = Turns()
        self._next_look = 0.0

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        return self._topology.connect(self._mpi.split(color, key))

    def empty(self, shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """An uninitialised array in this rank's arena, where its peers read it: no copy is made."""
        kind = np.dtype(dtype)
        whole = (shape,) if isinstance(shape, int) else tuple(shape)
        memory: Array = self._memory.arena.empty(math.prod(whole) * kind.itemsize)
        return memory.view(kind).reshape(whole)

    def views(self, *arrays: Array) -> list[list[Array]] | None:
        arena = self._memory.arena
        own = [(arena.find(_bytes(x.reshape(-1))), x.nbytes) for x in arrays]
        every: Array = self.all_gather(np.array([own], np.int64))
        if every[..., 0].min(initial=0) < 0:
            return None
        return [
            [
                x if rank == self.rank else self._view(rank, told[rank], x)
                for rank in range(self.size)
            ]
            for x, told in zip(arrays, every.swapaxes(0, 1), strict=True)
        ]

    def _view(self, rank: int, where: Array, like: Array) -> Array:
        memory: Array = self._memory.mappings[self._places[rank]].view(*where.tolist())
        return memory.view(like.dtype).reshape(-1, *like.shape[1:])

    def abort(self, code: int) -> None:
        self._window.abort()
        self._mpi.abort(code)

    def close(self) -> None:
        if self._window.open:
            self._mpi.barrier()  # from here on no peer tells this window anything
            self._window.close()
            self._mpi.close()

    # --- the hooks ----------------------------------------------------------------------------

    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        if not adds(reduction, out):
            return self._outside(self._mpi._all_reduce(reduction, out), reduction, out, True)
        return self._reduce(reduction, out, True)

    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        if not adds(reduction, out):
            return self._outside(self._mpi._reduce_scatter(reduction, out), reduction, out, False)
        return self._reduce(reduction, out, False)

    def _outside(
        self, steps: Steps, reduction: Reduction, out: Array, gather: bool
    ) -> Iterator[Poll]:
        """steps over MPI, once all ranks mean the same."""
        nodes = reduction.nodes
        kinds = str(nodes.dtype), str(out.dtype)
        nbytes = math.prod(nodes.shape[1:]) * nodes.dtype.itemsize
        yield from _Run(self, self._window.outside(reduction.op, *kinds, gather, nbytes))
        yield from steps

    def _reduce(self, reduction: Reduction, out: Array, gather: bool) -> Steps:
        counts, merges = reduction.plan()
        _, outer, _, inner = reduction.nodes.shape
        columns = [inner * b for b in reduction.bounds]
        spec = kernels.ReduceSpec(counts, merges, columns, outer, reduction.op, gather)
        return _Run(
            self,
            self._window.reduction(reduction.nodes, spec, reduction.bias, out),
            reduction.nodes,
            *(() if reduction.bias is None else (reduction.bias,)),
        )

    def _all_gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        size = x.dtype.itemsize
        counts = [size * n for n in lengths]
        call = self._window.all_gather(_bytes(x), counts, _bytes(out), str(x.dtype))
        return _Run(self, call, x)

    def _all_to_all(self, x: Array, sends: Bounds, out: Array, receives: Bounds) -> Steps:
        size = x.dtype.itemsize
        send, receive = [size * b for b in sends], [size * b for b in receives]
        call = self._window.all_to_all(_bytes(x), send, _bytes(out), receive, str(x.dtype))
        return _Run(self, call, x)

    def _broadcast(self, x: Array, root: int) -> Steps:
        return _Run(self, self._window.broadcast(_bytes(x), root, str(x.dtype)), x)

    def _send(self, x: Array, dest: int, tag: int) -> Steps:
        return self._mpi._send(x, dest, tag)

    def _recv(self, out: Array, source: int, tag: int) -> Steps:
        return self._mpi._recv(out, source, tag)

    def _barrier(self) -> Steps:
        return _Run(self, self._window.barrier())

    def _refused(self, x: Array | None) -> Steps:
        return _Run(self, self._window.refused())

    def _advance(self) -> bool:
        if self._window.advance(spin_us()):
            return True
        now, late = time.perf_counter(), self._window.late_peer
        if now > self._next_look and late >= 0:
            self._next_look = now + _SUSPICIOUS
            if self._memory.gone(self._places[late]):
                raise RuntimeError(f"the process of rank {late} of this communicator has ended")
        return False


class _Run(Quick):
    """One call of a node's window."""

    __slots__ = ("_call", "_node", "quick", "reads")

    def __init__(self, node: Node, call: Any, *reads: Array):
        self._node, self._call = node, call
        call.spin_us = quick_us()
        self.quick = call.run
        self.reads = reads

    def __iter__(self) -> Iterator[Poll]:
        turns = self._node._turns
        turn = turns.take()
        yield lambda: turns.now == turn
        self._node._window.start(self._call)
        yield from self._finish()

    def rest(self) -> Iterator[Poll]:
        self._node._turns.take()
        return self._finish()

    def _finish(self) -> Iterator[Poll]:
        self._node._next_look = time.perf_counter() + _SUSPICIOUS
        try:
            yield self._node._advance
        finally:  # ranks that disagree about one collective can do the next
            self._node._turns.now += 1


def _bytes(x: Array) -> Array:
    return x.view(np.uint8)
