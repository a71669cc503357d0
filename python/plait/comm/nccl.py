"""Collectives of GPUs over NCCL, by CuPy: between nodes, or where none maps another's memory.

NCCL moves bytes and reduces integers, in the order of the stream; float sums are added by plait's
kernels. Host arrays, messages between two ranks, objects and barriers take the transport of the
host.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from plait import backend
from plait.backend import address, assign, on_device
from plait.comm.combine import BFLOAT16, FLOAT32, Bounds, Reduction
from plait.comm.communicator import Communicator
from plait.comm.compared import Compared, compared
from plait.comm.exchange import Exchange, offsets_of
from plait.comm.staged import Staged
from plait.comm.transport import PeerFailed
from plait.comm.work import Array, Poll, Steps

_INTEGERS = {
    "i1": "NCCL_INT8",
    "u1": "NCCL_UINT8",
    "i4": "NCCL_INT32",
    "u4": "NCCL_UINT32",
    "i8": "NCCL_INT64",
    "u8": "NCCL_UINT64",
}
_OPS = {"sum": "NCCL_SUM", "max": "NCCL_MAX", "min": "NCCL_MIN"}


def at_once() -> bool:
    """A poll: the stream keeps the order, nobody waits for it here."""
    return True


class Link:
    """NCCL's communicator, which a communicator and its with_leaves share."""

    def __init__(self, inner: Communicator):
        nccl = backend.nccl()
        name = inner.broadcast_object(nccl.get_unique_id() if inner.rank == 0 else None)
        self._comm = nccl.NcclCommunicator(inner.size, name, inner.rank)
        self._lost = (
            f"rank {inner.rank}: NCCL lost a peer or the network (NCCL_DEBUG=INFO says which)"
        )
        backend.watch(self)

    @property
    def comm(self) -> Any:
        """PeerFailed once it has been given up, or closed."""
        if self._comm is None:
            raise PeerFailed(self._lost)
        return self._comm

    def look(self) -> None:
        """PeerFailed if a peer is gone, or the network between. While the host waits for the
        device."""
        if self._comm is None:
            return
        try:
            self._comm.check_async_error()
        except RuntimeError as error:
            self.give_up()  # or the stream would wait for ever
            raise PeerFailed(f"{self._lost}: {error}") from None

    def give_up(self) -> None:
        comm, self._comm = self._comm, None
        if comm is not None:
            comm.abort()

    def close(self) -> None:
        comm, self._comm = self._comm, None
        if comm is not None:
            comm.destroy()


class Nccl(Compared, Exchange):
    """The ranks of `inner`, each with a GPU of its own. Collective. Unless it is `checked` nobody
    compares what the ranks give to a collective: what does not fit waits for ever."""

    def __init__(self, inner: Communicator):
        Staged.__init__(self, inner)
        self.transport = f"{inner.transport}, nccl"
        self._nccl, self._link = backend.nccl(), Link(inner)
        self.stream_ordered = True

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        found = self.inner.split(color, key)
        if found is None:
            return None
        return Staged(found) if found.size == 1 else Nccl(found)

    def abort(self, code: int) -> None:
        try:
            self._link.give_up()
        finally:
            super().abort(code)

    def close(self) -> None:
        self._link.close()
        super().close()

    # --- sums -----------------------------------------------------------------------------------

    @compared
    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        if not on_device(out):
            return self.inner._all_reduce(reduction, out)
        if _sums_floats(reduction, out):
            return Exchange._all_reduce(self, reduction, out)
        return self._unordered(reduction, out.reshape(-1))

    @compared
    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        if on_device(out) and _sums_floats(reduction, out):
            return Exchange._reduce_scatter(self, reduction, out)
        return Staged._reduce_scatter(self, reduction, out)

    def _unordered(self, reduction: Reduction, out: Array) -> Steps:
        kind = _INTEGERS.get(out.dtype.str[1:])
        if kind is None:  # 16 bits
            yield from Staged._all_reduce(self, reduction, out)
            return
        kind, op = getattr(self._nccl, kind), getattr(self._nccl, _OPS[reduction.op])
        x = reduction.nodes.reshape(-1)
        self._link.comm.allReduce(address(x), address(out), out.size, kind, op, backend.stream())

    # --- moves ----------------------------------------------------------------------------------

    @compared
    def _all_gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        if not on_device(out):
            yield from self.inner._all_gather(x, lengths, out)
            return
        start = sum(lengths[: self.rank])
        own = out[start : start + lengths[self.rank]]
        if own.size and address(own) != address(x):
            assign(own, x)
        yield self._gather_again(own, lengths, out)

    def _gather_again(self, own: Array, lengths: Sequence[int], out: Array) -> Poll:
        offsets = offsets_of(lengths)
        peers = [rank for rank in range(self.size) if rank != self.rank]
        sends = [(rank, own) for rank in peers]
        return self._move(sends, [(rank, out[offsets[rank] : offsets[rank + 1]]) for rank in peers])

    def _exchange(
        self, x: Array, send_offsets: list[int], sends: list[int], out: Array,
        receive_offsets: list[int], receives: list[int], largest: int,
    ) -> Poll:  # fmt: skip
        return self._move(
            [(rank, x[a : a + n]) for rank, (a, n) in enumerate(zip(send_offsets, sends))],
            [(rank, out[a : a + n]) for rank, (a, n) in enumerate(zip(receive_offsets, receives))],
        )

    @compared
    def _all_to_all(self, x: Array, sends: Bounds, out: Array, receives: Bounds) -> Steps:
        if not on_device(out):
            yield from self.inner._all_to_all(x, sends, out, receives)
            return
        of = [x[a:b] for a, b in pairwise(sends)]
        into = [out[a:b] for a, b in pairwise(receives)]
        assign(into[self.rank], of[self.rank])
        peers = [rank for rank in range(self.size) if rank != self.rank]
        yield self._move([(r, of[r]) for r in peers], [(r, into[r]) for r in peers])

    @compared
    def _broadcast(self, x: Array, root: int) -> Steps:
        if not on_device(x):
            yield from self.inner._broadcast(x, root)
        elif x.size:
            self._link.comm.bcast(
                address(x), x.nbytes, self._nccl.NCCL_UINT8, root, backend.stream()
            )

    def _move(self, sends: list[tuple[int, Array]], receives: list[tuple[int, Array]]) -> Poll:
        """Sends to and receives from ranks, together; nothing of what is empty."""
        nccl, comm, stream = self._nccl, self._link.comm, backend.stream()
        nccl.groupStart()
        try:
            for rank, x in sends:
                if x.size:
                    comm.send(address(x), x.nbytes, nccl.NCCL_UINT8, rank, stream)
            for rank, x in receives:
                if x.size:
                    comm.recv(address(x), x.nbytes, nccl.NCCL_UINT8, rank, stream)
        finally:
            nccl.groupEnd()
        return at_once


def _sums_floats(reduction: Reduction, out: Array) -> bool:
    """Whether plait's kernels do the additions."""
    kinds = (FLOAT32, BFLOAT16)
    return reduction.op == "sum" and reduction.nodes.dtype in kinds and out.dtype in kinds
