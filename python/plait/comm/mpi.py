"""Collectives over MPI: it moves bytes and reduces integers.

Second stages (exchange.py) run on a duplicate of the communicator, so that all ranks start the
collectives of each in one order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from mpi4py import MPI

from plait.backend import address, assign
from plait.comm.alone import Alone
from plait.comm.combine import Bounds, Reduction
from plait.comm.communicator import Communicator
from plait.comm.exchange import Exchange, offsets_of
from plait.comm.launcher import launcher
from plait.comm.tree import Leaves
from plait.comm.work import Array, Poll, Steps, Work

LIMIT = 2**31 - 1  # elements that an int of MPI can count; more go in pieces
_TYPES = {1: MPI.BYTE, 2: MPI.UINT16_T, 4: MPI.UINT32_T, 8: MPI.UINT64_T}
_INTEGERS = {
    "i1": MPI.INT8_T,
    "i2": MPI.INT16_T,
    "i4": MPI.INT32_T,
    "i8": MPI.INT64_T,
    "u1": MPI.UINT8_T,
    "u2": MPI.UINT16_T,
    "u4": MPI.UINT32_T,
    "u8": MPI.UINT64_T,
}
_OPS = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}


class Mpi(Exchange):
    """Wraps duplicates of an mpi4py communicator: what its owner sends meets nothing of ours."""

    transport = "mpi"
    most = LIMIT  # elements of one call of a collective; more go in single messages

    def __init__(self, comm: MPI.Comm, leaves: Leaves | None = None):
        super().__init__(comm.rank, comm.size, leaves)
        self._first, self._second = _duplicate(comm), _duplicate(comm)

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        self.barrier()  # here started collectives move on, in Split they would not
        found = self._first.Split(MPI.UNDEFINED if color is None else color, key)
        if found == MPI.COMM_NULL:
            return None
        try:
            return Alone(end_job=self.abort) if found.size == 1 else type(self)(found)
        finally:
            found.Free()

    def abort(self, code: int) -> None:
        abort_job(self._first, code)

    def close(self) -> None:
        if self._first != MPI.COMM_NULL:
            self._first.Free()
            self._second.Free()

    def _unordered(self, reduction: Reduction, out: Array) -> Steps:
        x = reduction.nodes.reshape(-1)
        kind, op = _INTEGERS[x.dtype.str[1:]], _OPS[reduction.op]
        if address(x) != address(out):
            assign(out, x)
        self._before_call()
        calls = [[out[a:b], kind] for a, b in _pieces(0, out.size)]
        yield all_of([self._first.Iallreduce(MPI.IN_PLACE, call, op) for call in calls])

    # --- moves --------------------------------------------------------------------------------

    def _all_gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        yield self._gather(self._first, x, lengths, out)

    def _gather_again(self, own: Array, lengths: Sequence[int], out: Array) -> Poll:
        return self._gather(self._second, own, lengths, out)

    def _gather(self, comm: MPI.Comm, x: Array, lengths: Sequence[int], out: Array) -> Poll:
        x, kind, unit = _raw(x)
        out, _, _ = _raw(out)
        lengths = [unit * length for length in lengths]
        offsets = offsets_of(lengths)
        own = out[offsets[self.rank] : offsets[self.rank + 1]]
        if own.size and address(own) != address(x):
            assign(own, x)
        if out.size <= self.most:
            self._before_call()
            return comm.Iallgatherv(MPI.IN_PLACE, [out, (lengths, offsets[:-1]), kind]).Test
        stage = 0 if comm is self._first else 1
        receives = list(lengths)
        receives[self.rank] = 0
        sends = [0 if rank == self.rank else own.size for rank in range(self.size)]
        return self._messages(own, [0] * self.size, sends, out, offsets[:-1], receives, stage)

    def _all_to_all(self, x: Array, sends: Bounds, out: Array, receives: Bounds) -> Steps:
        x, _, unit = _raw(x)
        out, _, _ = _raw(out)
        send, receive = [unit * b for b in sends], [unit * b for b in receives]
        rank = self.rank
        assign(out[receive[rank] : receive[rank + 1]], x[send[rank] : send[rank + 1]])
        send_counts = [b - a for a, b in pairwise(send)]
        receive_counts = [b - a for a, b in pairwise(receive)]
        send_counts[rank] = receive_counts[rank] = 0
        yield self._messages(x, send[:-1], send_counts, out, receive[:-1], receive_counts, 0)

    def _broadcast(self, x: Array, root: int) -> Steps:
        x, kind, _ = _raw(x)
        self._before_call()
        yield all_of([self._first.Ibcast([x[a:b], kind], root) for a, b in _pieces(0, x.size)])

    def _send(self, x: Array, dest: int, tag: int) -> Steps:
        x, kind, _ = _raw(x)
        self._before_call()
        yield all_of([self._first.Isend([x[a:b], kind], dest, tag) for a, b in _pieces(0, x.size)])

    def _recv(self, out: Array, source: int, tag: int) -> Steps:
        x, kind, _ = _raw(out)
        self._before_call()
        yield all_of(
            [self._first.Irecv([x[a:b], kind], source, tag) for a, b in _pieces(0, x.size)]
        )

    def _barrier(self) -> Steps:
        yield self._first.Ibarrier().Test

    def _before_call(self) -> None:
        """Arrays are given to MPI next."""

    # --- bytes --------------------------------------------------------------------------------

    def _exchange(
        self,
        x: Array,
        send_offsets: list[int],
        sends: list[int],
        out: Array,
        receive_offsets: list[int],
        receives: list[int],
        largest: int,
    ) -> Poll:
        x, kind, _ = _raw(x)
        out, _, _ = _raw(out)
        if largest > self.most:
            return self._messages(x, send_offsets, sends, out, receive_offsets, receives, 0)
        self._before_call()
        return self._first.Ialltoallv(
            [x, (sends, send_offsets), kind], [out, (receives, receive_offsets), kind]
        ).Test

    def _messages(
        self,
        x: Array,
        send_offsets: list[int],
        sends: list[int],
        out: Array,
        receive_offsets: list[int],
        receives: list[int],
        stage: int,
    ) -> Poll:
        """The same by single messages."""
        self._before_call()
        ranks = [(self.rank + step) % self.size for step in range(1, self.size)]
        into = [(r, out[receive_offsets[r] :][: receives[r]]) for r in reversed(ranks)]
        of = [(r, x[send_offsets[r] :][: sends[r]]) for r in ranks]
        return all_of(self.expect(into, stage) + self.post(of, stage))

    def post(self, pieces: Iterable[tuple[int, Array]], stage: int) -> list[MPI.Request]:
        """Sends each (rank, flat array); nothing of an empty one. The user's messages are on the
        other duplicate. Within a stage both sides of a pair post in one order, so it is the tag."""
        return [
            self._second.Isend([raw[a:b], kind], rank, stage)
            for rank, raw, kind in _not_empty(pieces)
            for a, b in _pieces(0, raw.size)
        ]

    def expect(self, pieces: Iterable[tuple[int, Array]], stage: int) -> list[MPI.Request]:
        """Receives into each (rank, flat array)."""
        return [
            self._second.Irecv([raw[a:b], kind], rank, stage)
            for rank, raw, kind in _not_empty(pieces)
            for a, b in _pieces(0, raw.size)
        ]


def abort_job(comm: MPI.Comm, code: int) -> None:
    """Ends all ranks of the job so that the launcher reports this code. MPICH tells its mpiexec of
    an abort of the world only; without that mpiexec sees processes die and reports one's signal.
    Slurm kills them with a signal where it is told, and finds the code by itself."""
    (MPI.COMM_WORLD if launcher().hydra else comm).Abort(code)


def _duplicate(comm: MPI.Comm) -> MPI.Comm:
    """comm.Dup() that gives its core away while it waits."""
    found, request = comm.Idup()

    def steps() -> Steps:
        yield request.Test

    Work("duplicate", steps()).wait()
    return found


def _not_empty(
    pieces: Iterable[tuple[int, Array]],
) -> Iterator[tuple[int, Array, MPI.Datatype]]:
    for rank, piece in pieces:
        if piece.size:
            raw, kind, _ = _raw(piece)
            yield rank, raw, kind


def _raw(x: Array) -> tuple[Array, MPI.Datatype, int]:
    """A flat array as integers that MPI knows, their type, and how many make an element."""
    width = next(w for w in (8, 4, 2, 1) if x.dtype.itemsize % w == 0)
    return x.view(f"u{width}"), _TYPES[width], x.dtype.itemsize // width


def _pieces(start: int, stop: int) -> list[tuple[int, int]]:
    """[start, stop) in pieces of at most LIMIT; one empty piece if it is empty."""
    cuts = [*range(start, stop, LIMIT), stop] if stop > start else [start, stop]
    return list(pairwise(cuts))


def all_of(requests: list[MPI.Request]) -> Poll:
    return lambda: bool(MPI.Request.Testall(requests))
