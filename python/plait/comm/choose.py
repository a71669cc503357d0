"""The transport of a communicator follows from what connects its ranks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from plait.comm.alone import Alone
from plait.comm.communicator import Communicator
from plait.comm.work import set_crowded

if TYPE_CHECKING:
    from mpi4py import MPI


def communicator(comm: MPI.Intracomm) -> Communicator:
    """Wraps an mpi4py communicator; all its ranks call this. The transport follows from what
    connects the ranks: alone for one."""
    if comm.size == 1:
        return Alone(end_job=comm.Abort)
    from mpi4py import MPI

    from plait.comm.mpi import Mpi

    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    set_crowded(_crowded(node))
    node.Free()
    return Mpi(comm)


def _crowded(node: MPI.Comm) -> bool:
    """Whether the ranks of a node are more than the cores they may run on."""
    cores = set().union(*node.allgather(os.sched_getaffinity(0)))
    return node.size > len(cores)
