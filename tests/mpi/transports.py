"""The transports under test, over all ranks of a case."""

from __future__ import annotations

from functools import cache

from harness import kept

from plait.comm import Communicator


@cache
def transports() -> list[Communicator]:
    """One communicator of every transport, for all cases. The node's staging is as small as it can
    be, so that what is tested takes many rounds."""
    with kept():
        return make_transports()


def make_transports() -> list[Communicator]:
    from mpi4py import MPI

    from plait.comm import node
    from plait.comm.alone import Alone
    from plait.comm.choose import communicator
    from plait.comm.mpi import Mpi

    comm = MPI.COMM_WORLD
    if comm.size == 1:
        return [Alone(), Mpi(comm)]
    whole, node.STAGING = node.STAGING, 1
    try:
        on_node = communicator(comm)
    finally:
        node.STAGING = whole
    assert on_node.transport == "node"
    found = [Mpi(comm), on_node]
    if comm.size > 2:
        found.append(on_nodes([rank // 2 for rank in range(comm.size)]))  # of 2 ranks, the last 1
        found.append(on_nodes([rank % 2 for rank in range(comm.size)]))  # in turn
    return found


def on_nodes(nodes: list[int]) -> Communicator:
    """All ranks as if rank r were on node nodes[r], for arrays of the host."""
    from mpi4py import MPI

    from plait.comm import choose

    def pretended(comm: MPI.Intracomm) -> MPI.Intracomm:
        return comm.Split(nodes[comm.rank], comm.rank)

    real, choose.ranks_of_node = choose.ranks_of_node, pretended
    try:
        found = choose.on_hosts(MPI.COMM_WORLD)
    finally:
        choose.ranks_of_node = real
    assert found.transport == "hierarchical"
    return found
