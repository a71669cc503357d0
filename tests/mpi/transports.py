"""The transports under test, over all ranks of a case."""

from __future__ import annotations

from plait.comm import Communicator


def transports() -> list[Communicator]:
    """One communicator of every transport; all ranks call this."""
    from mpi4py import MPI

    from plait.comm.alone import Alone
    from plait.comm.mpi import Mpi

    comm = MPI.COMM_WORLD
    if comm.size == 1:
        return [Alone(), Mpi(comm)]
    return [Mpi(comm)]
