"""The mesh over real ranks: who meets whom on which axis, over any transport and placement."""

from __future__ import annotations

import numpy as np
import pytest
from harness import case, kept
from reference import assert_same, nodes_of, tree, values
from transports import on_nodes

import plait
from plait.comm import Communicator
from plait.mesh import Layout

LAYOUTS = {
    1: [(1, 1, 1)],
    2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)],
    3: [(3, 1, 1), (1, 3, 1), (1, 1, 3)],
    4: [(4, 1, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2)],
    6: [(3, 2, 1), (1, 2, 3), (2, 3, 1)],
    8: [(2, 2, 2), (1, 8, 1)],
}


@case((1, 2, 3, 4, 6, 8))
def axes(world: Communicator) -> None:
    """Every axis joins exactly the ranks that differ in it alone, in the order of its index."""
    for sizes in LAYOUTS[world.size]:
        mesh, layout = plait.Mesh(*sizes, comm=world), Layout(*sizes)
        at = mesh.coordinates
        assert layout.rank(at) == mesh.world.rank == world.rank
        for name in ("data", "tensor", "pipeline"):
            axis = getattr(mesh, name)
            assert (axis.size, axis.rank) == (getattr(layout, name), getattr(at, name))
            members = [layout.coordinates(rank) for rank in axis.all_gather_object(world.rank)]
            assert [getattr(other, name) for other in members] == list(range(axis.size))
            others = {"data", "tensor", "pipeline"} - {name}
            assert all(getattr(m, o) == getattr(at, o) for m in members for o in others)


@case((2, 3, 4, 6))
def gradients_add_up_the_same_at_every_layout(world: Communicator) -> None:
    """Leaves (8 of data, 6 of tensor): first the data tree, then the tensor tree."""
    x = [[values((501,), np.float32, 100 * d + t) for t in range(6)] for d in range(8)]
    wanted = tree([tree([x[d][t] for d in range(8)]) for t in range(6)])
    for sizes in LAYOUTS[world.size]:
        mesh = plait.Mesh(*sizes, grains={"data": 8, "tensor": 6}, comm=world)
        data, tensor = mesh.data, mesh.tensor
        over_data = []
        for t in tensor.leaves.run(tensor.rank):
            own = data.leaves.run(data.rank)
            nodes = nodes_of([x[d][t] for d in range(8)], own.start, own.stop)
            over_data.append(data.all_reduce_nodes(nodes))
        run = tensor.leaves.run(tensor.rank)
        padded = [np.zeros(501, np.float32)] * run.start + over_data
        padded += [np.zeros(501, np.float32)] * (6 - len(padded))
        found = tensor.all_reduce_nodes(nodes_of(padded, run.start, run.stop))
        assert_same(found, wanted, f"{sizes}")


@case(4)
def ranks_dealt_out_to_nodes_in_turn_are_put_in_order(world: Communicator) -> None:
    """World ranks 0 and 2 share a node, so they become tensor neighbours."""
    mesh = plait.Mesh(2, 2, 1, comm=on_nodes([0, 1, 0, 1]))
    assert mesh.world.all_gather_object(world.rank) == [0, 2, 1, 3]
    assert mesh.tensor.all_gather_object(world.rank) == ([0, 2] if world.rank % 2 == 0 else [1, 3])
    assert [mesh.world.transport, mesh.tensor.transport, mesh.data.transport] == [
        "hierarchical",
        "node",
        "mpi",
    ]


@case(3)
def a_layout_that_does_not_fit_fails_on_every_rank(world: Communicator) -> None:
    with pytest.raises(ValueError, match="layout 2x2x1 needs 4 ranks, the world has 3: start 4"):
        plait.Mesh(2, 2, comm=world)
    with pytest.raises(ValueError, match=r"give grains=\{'data': 3, 'tensor': 1\}"):
        plait.Mesh(3, grains={"data": 2, "tensor": 1}, comm=world)


@case(2)
def any_mpi4py_communicator(world: Communicator) -> None:
    """plait's messages never meet those of the communicator it was given."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Split(0, -MPI.COMM_WORLD.rank)
    mine = plait.communicator(comm)
    assert (mine.rank, mine.size) == (comm.rank, comm.size) == (1 - world.rank, 2)
    request = comm.irecv(source=1 - comm.rank, tag=0)
    got = np.zeros(3, np.float32)
    work = mine.recv(got, 1 - mine.rank, blocking=False)
    sent = mine.send(np.full(3, mine.rank, np.float32), 1 - mine.rank, blocking=False)
    comm.send("theirs", 1 - comm.rank, tag=0)
    work.wait()
    sent.wait()
    assert request.wait() == "theirs"
    assert (got == 1 - mine.rank).all()
    mine.close()
    comm.Free()


@case(4)
def a_closed_mesh_gives_its_communicators_back(world: Communicator) -> None:
    """An MPI has some thousands of them."""
    from mpi4py import MPI

    from plait.comm.mpi import Mpi

    with kept():
        mesh = plait.Mesh(2, 2, comm=MPI.COMM_WORLD)
        found = [c._mpi for c in (mesh.world, mesh.data, mesh.tensor)]
        mesh.close()
        assert all(isinstance(c, Mpi) and c._first == MPI.COMM_NULL for c in found)
