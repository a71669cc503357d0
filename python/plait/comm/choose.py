"""The transport of a communicator follows from what connects its ranks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from plait import backend
from plait.comm.alone import Alone
from plait.comm.communicator import Communicator
from plait.comm.topology import Topology
from plait.comm.work import set_crowded

if TYPE_CHECKING:
    from mpi4py import MPI


def communicator(comm: MPI.Intracomm) -> Communicator:
    """Wraps an mpi4py communicator; all its ranks call this.

    The transport is alone for one rank, node if all ranks share a node, mpi if no two do, and
    hierarchical otherwise. Where all ranks have taken the CUDA backend it takes arrays of the
    device besides: over peer memory where ranks share it, else through host memory. What the caller
    sends on comm itself meets nothing of plait's.

    ValueError if only some of the ranks have taken the CUDA backend.
    """
    found = on_hosts(comm)
    backends = found.all_gather_object(backend.name())
    if len(set(backends)) > 1:
        ranks = backends.index("cuda"), backends.index("cpu")
        found.close()
        raise ValueError(
            f'communicator: rank {ranks[0]} has taken the backend "cuda", rank {ranks[1]} has not: '
            'call plait.backend.use("cuda", local_rank) on all of them or on none'
        )
    if backends[0] == "cpu":
        return found
    from plait.comm.for_device import device_communicator

    return device_communicator(found)


def on_hosts(comm: MPI.Intracomm) -> Communicator:
    """As communicator(), for arrays of the host whatever the backend."""
    if comm.size == 1:
        return Alone(end_job=comm.Abort)
    from plait.comm.memory import NodeMemory
    from plait.comm.mpi import Mpi

    mpi = Mpi(comm)
    node = ranks_of_node(comm)
    if _crowded(node):
        set_crowded()
    memory = NodeMemory.connect(node) if node.size > 1 else None
    name = node.bcast(comm.rank)
    topology = Topology(name, node.rank, memory, choose)
    node.Free()
    return choose(mpi, topology)


def choose(mpi: Communicator, topology: Topology) -> Communicator:
    """The transport for the ranks of mpi; topology is this rank's."""
    from plait.comm.mpi import Mpi

    if not isinstance(mpi, Mpi):
        return mpi  # alone
    mine = [topology.node, topology.place, topology.memory is not None]
    nodes, places, shared = mpi.all_gather(np.array([mine])).T.tolist()
    found: Communicator = mpi
    if len(set(nodes)) == 1 and all(shared):
        from plait.comm.node import Node

        found = Node(mpi, topology, places)
    elif len(set(nodes)) < mpi.size and all(
        s or nodes.count(n) == 1 for n, s in zip(nodes, shared)
    ):
        from plait.comm.hierarchical import Hierarchical

        found = Hierarchical(mpi, topology, nodes)
    found.nodes = tuple(nodes)
    return found


def ranks_of_node(comm: MPI.Intracomm) -> MPI.Intracomm:
    """The ranks of comm that can share memory with this one, in their order."""
    from mpi4py import MPI

    return comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)  # type: ignore[return-value]


def _crowded(node: MPI.Intracomm) -> bool:
    """Whether the ranks of a node are more than the cores they may run on."""
    cores = set().union(*node.allgather(os.sched_getaffinity(0)))
    return node.size > len(cores)
