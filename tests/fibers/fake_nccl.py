"""As much of cupy.cuda.nccl as plait uses, over MPI: what is given are addresses of host memory.

All ranks of the world make a communicator at the same time, each of the one it is in. A captured
stream keeps what it is told for the graph.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import fake_cupy
from mpi4py import MPI

available = True
(NCCL_INT8, NCCL_UINT8, NCCL_INT32, NCCL_UINT32, NCCL_INT64, NCCL_UINT64) = range(6)
NCCL_SUM, NCCL_MAX, NCCL_MIN = range(3)
_TYPES = [MPI.INT8_T, MPI.UINT8_T, MPI.INT32_T, MPI.UINT32_T, MPI.INT64_T, MPI.UINT64_T]
_OPS = [MPI.SUM, MPI.MAX, MPI.MIN]
_numbers = itertools.count()
_group: list[Any] | None = None
calls: list[str] = []  # of communicators' methods, in order
sent: Counter[int] = Counter()  # bytes to each rank
lost = False  # a peer


class NcclError(RuntimeError):
    pass


def get_unique_id() -> tuple[int, ...]:
    return (MPI.COMM_WORLD.rank, next(_numbers))


def groupStart() -> None:
    global _group
    assert _group is None
    _group = []


def groupEnd() -> None:
    global _group
    assert _group is not None
    group, _group = _group, None
    fake_cupy.do(lambda: MPI.Request.Waitall([start() for start in group]))


def _buffer(address: int, count: int, kind: int) -> Any:
    size = count * _TYPES[kind].Get_size()
    return [MPI.buffer.fromaddress(address, size) if size else bytearray(), count, _TYPES[kind]]


class NcclCommunicator:
    def __init__(self, size: int, name: tuple[int, ...], rank: int):
        self._comm = MPI.COMM_WORLD.Split(name[0], rank)
        assert (self._comm.size, self._comm.rank) == (size, rank)

    def send(self, x: int, count: int, kind: int, peer: int, stream: int) -> None:
        sent[peer] += count * _TYPES[kind].Get_size()
        self._later("send", lambda: self._comm.Isend(_buffer(x, count, kind), peer))

    def recv(self, x: int, count: int, kind: int, peer: int, stream: int) -> None:
        self._later("recv", lambda: self._comm.Irecv(_buffer(x, count, kind), peer))

    def _later(self, name: str, start: Any) -> None:
        assert _group is not None, "a send outside a group can wait for its receive for ever"
        calls.append(name)
        _group.append(start)

    def bcast(self, x: int, count: int, kind: int, root: int, stream: int) -> None:
        calls.append("bcast")
        fake_cupy.do(lambda: self._comm.Bcast(_buffer(x, count, kind), root))

    def allReduce(self, x: int, out: int, count: int, kind: int, op: int, stream: int) -> None:
        calls.append("allReduce")

        def reduce() -> None:
            given: Any = MPI.IN_PLACE if x == out else _buffer(x, count, kind)
            self._comm.Allreduce(given, _buffer(out, count, kind), _OPS[op])

        fake_cupy.do(reduce)

    def check_async_error(self) -> None:
        if lost:
            raise NcclError("NCCL_ERROR_REMOTE_ERROR: remote process exited")

    def abort(self) -> None:
        calls.append("abort")

    def destroy(self) -> None:
        self._comm.Free()
