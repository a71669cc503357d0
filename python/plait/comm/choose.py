"""The transport of a communicator follows from what connects its ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plait.comm.alone import Alone
from plait.comm.communicator import Communicator

if TYPE_CHECKING:
    from mpi4py import MPI


def communicator(comm: MPI.Intracomm) -> Communicator:
    """Wraps an mpi4py communicator; all its ranks call this. The transport follows from what
    connects the ranks: alone for one."""
    if comm.size == 1:
        return Alone()
    from plait.comm.mpi import Mpi

    return Mpi(comm)
