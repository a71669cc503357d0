"""Collectives of device arrays by an MPI that reads and writes a device's memory by itself.

Whether it does is asked of the library, then tried with real data: one that does not would end the
process at the first such array.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plait import backend
from plait.backend import on_device
from plait.comm.combine import Bounds, Reduction, adds
from plait.comm.communicator import Communicator
from plait.comm.compared import Compared, compared
from plait.comm.mpi import Mpi
from plait.comm.staged import Staged
from plait.comm.work import Array, Steps

_MPIX_GPU_SUPPORT_CUDA = 0
SIZES = (1, 1 << 18)  # elements: eager and by rendezvous


class AwareMpi(Mpi):
    """Ranks of an MPI that is CUDA-aware, for device arrays only. MPI knows nothing of streams: the
    device is waited for before each call. Everything goes in single messages: not every MPI that is
    CUDA-aware takes device arrays in its collectives."""

    transport = "mpi, CUDA-aware"
    most = -1

    def _before_call(self) -> None:
        backend.wait()
        backend.synchronize()

    def _broadcast(self, x: Array, root: int) -> Steps:
        peers = [x.size if rank != root else 0 for rank in range(self.size)]
        nobody, here = [0] * self.size, self.rank == root
        receives = [x.size if rank == root and not here else 0 for rank in range(self.size)]
        yield self._messages(x, nobody, peers if here else nobody, x, nobody, receives, 0)


class Direct(Compared):
    """The ranks of `inner`; mpi, the same ones, takes the device's arrays, but for sums of other
    types than plait's kernels add, and for what has no order. Unless it is `checked` nobody
    compares what the ranks give to a collective."""

    def __init__(self, inner: Communicator, mpi: AwareMpi):
        super().__init__(inner)
        self._device = mpi
        self.transport = f"{inner.transport}, CUDA-aware"

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        found, mpi = self.inner.split(color, key), self._device.split(color, key)
        if found is None:
            return None
        return Direct(found, mpi) if isinstance(mpi, AwareMpi) else Staged(found)

    def close(self) -> None:
        self._device.close()
        super().close()

    @compared
    def _all_reduce(self, reduction: Reduction, out: Array) -> Steps:
        if on_device(out) and _sums_floats(reduction, out):
            return self._device._all_reduce(reduction, out)
        return super()._all_reduce(reduction, out)

    @compared
    def _reduce_scatter(self, reduction: Reduction, out: Array) -> Steps:
        if on_device(out) and _sums_floats(reduction, out):
            return self._device._reduce_scatter(reduction, out)
        return super()._reduce_scatter(reduction, out)

    @compared
    def _all_gather(self, x: Array, lengths: Sequence[int], out: Array) -> Steps:
        way = self._device if on_device(out) else self.inner
        return way._all_gather(x, lengths, out)

    @compared
    def _all_to_all(self, x: Array, sends: Bounds, out: Array, receives: Bounds) -> Steps:
        way = self._device if on_device(out) else self.inner
        return way._all_to_all(x, sends, out, receives)

    @compared
    def _broadcast(self, x: Array, root: int) -> Steps:
        return (self._device if on_device(x) else self.inner)._broadcast(x, root)

    def _send(self, x: Array, dest: int, tag: int) -> Steps:
        return (self._device if on_device(x) else self.inner)._send(x, dest, tag)

    def _recv(self, out: Array, source: int, tag: int) -> Steps:
        return (self._device if on_device(out) else self.inner)._recv(out, source, tag)

    def _barrier(self) -> Steps:
        backend.wait()
        return super()._barrier()


def _sums_floats(reduction: Reduction, out: Array) -> bool:
    return adds(reduction, out) and out.dtype.kind not in "iu"


def direct(inner: Communicator) -> Direct | None:
    """inner with its device arrays given to MPI, where that works on all ranks. Collective."""
    comm = getattr(inner, "_mpi", inner)
    if not inner.all_gather_object(isinstance(comm, Mpi) and refusal() is None).count(False):
        assert isinstance(comm, Mpi)
        mpi = AwareMpi(comm._first)
        if all(inner.all_gather_object(_moves(mpi))):
            return Direct(inner, mpi)
        mpi.close()
    return None


def _moves(mpi: AwareMpi) -> bool:
    """Whether on this rank what the previous rank sends arrives."""
    before, after = (mpi.rank - 1) % mpi.size, (mpi.rank + 1) % mpi.size
    good = True
    for n in SIZES:
        out = backend.zeros(n)
        arriving = mpi.recv(out, before, blocking=False)
        mpi.send(backend.to_device(_pattern(n, mpi.rank)), after)
        arriving.wait()
        good = good and np.array_equal(backend.to_host(out), _pattern(n, before))
    return good


def _pattern(n: int, rank: int) -> Array:
    return np.arange(n, dtype=np.float32) + np.float32(rank)


def refusal() -> str | None:
    """What the MPI library of this process says against it; None if it is CUDA-aware."""
    path = _library()
    if path is None:
        return "the file of the MPI library is not found"
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    flag = ctypes.c_int(0)
    if hasattr(library, "MPIX_GPU_query_support"):  # MPICH, Cray MPICH
        library.MPIX_GPU_query_support(_MPIX_GPU_SUPPORT_CUDA, ctypes.byref(flag))
    elif hasattr(library, "MPIX_Query_cuda_support"):  # Open MPI, MVAPICH
        flag.value = library.MPIX_Query_cuda_support()
    else:
        return f"{path.name} does not say whether it is CUDA-aware"
    return None if flag.value else f"{path.name} is not CUDA-aware"


def _library() -> Path | None:
    """The MPI that mpi4py has loaded."""
    maps = Path("/proc/self/maps").read_bytes().decode(errors="surrogateescape")
    found = re.findall(r"\S*/lib(?:mpi|mpich)(?:_abi|_nvidia|_gnu\w*)?[.]so\S*", maps)
    return Path(found[0]) if found else None
