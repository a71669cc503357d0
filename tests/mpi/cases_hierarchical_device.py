"""Collectives of device arrays over several nodes: the bits of the host's, whatever lies between
the nodes, and every byte crosses once."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import fake_nccl
import numpy as np
from cases_device import BFLOAT16, compare, over_nccl
from devices import REAL, gpus, same, there, values
from harness import case
from transports import on_nodes

import plait
from plait import backend
from plait.comm import Communicator, aware_mpi
from plait.comm.for_device import device_communicator
from plait.comm.hierarchical_device import HierarchicalDevice
from plait.comm.peer import Peer
from plait.comm.staged import Staged

# The node of each rank: 2 of 2, 3 and 1, in turn, alone between two; unequal ones.
NODES: dict[int, list[list[int]]] = {
    3: [[0, 0, 1]],
    4: [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 0]],
    6: [[0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 1, 0]],
}
WAYS = ["shared"] if REAL else ["nccl", "aware", "staged", "shared"]
TRANSPORTS = {
    "nccl": "hierarchical: peer, nccl",
    "aware": "hierarchical: peer, CUDA-aware",
    "staged": "hierarchical: peer, staged",
    "shared": "hierarchical: peer, split, staged",
}


@contextlib.contextmanager
def ranks_on(way: str, world: Communicator) -> Iterator[None]:
    """What lies between nodes; a GPU for each rank, or (shared) one for all of a node."""
    refusal, nccl = aware_mpi.refusal, backend.nccl
    if REAL:  # it knows that the nodes are one
        backend.nccl = lambda: None
    with gpus(world, way == "shared"), over_nccl() if way == "nccl" else contextlib.nullcontext():
        if way == "aware":
            aware_mpi.refusal = lambda: None
        try:
            yield
        finally:
            aware_mpi.refusal, backend.nccl = refusal, nccl


@contextlib.contextmanager
def hierarchical(world: Communicator, nodes: list[int], way: str) -> Iterator[HierarchicalDevice]:
    """All ranks as if rank r were on node nodes[r]."""
    with ranks_on(way, world):
        comm = device_communicator(on_nodes(nodes))
        assert isinstance(comm, HierarchicalDevice)
        assert comm.transport == TRANSPORTS[way]
        assert comm.stream_ordered == (way == "nccl")
        yield comm
        comm.close()


@case(ranks=(3, 4, 6), limit=300, long=(4, 6), cuda=True)
def collectives_have_the_bits_of_the_host(world: Communicator) -> None:
    for nodes in NODES[world.size]:
        for way in WAYS if nodes == NODES[world.size][0] else WAYS[:1]:
            with hierarchical(world, nodes, way) as comm:
                for n in (0, 1, 5, 1500) if way == WAYS[0] else (1500,):
                    compare(world, comm, n)
                x = values(world.rank, (5000,), np.float64)  # which no kernel adds
                same(comm.all_reduce(backend.to_device(x)), world.all_reduce(x))
                x = values(world.rank, (77, 60), np.float32)
                inside = there(comm, x, True)
                same(comm.all_reduce(inside, "max"), world.all_reduce(x, "max"))
                same(comm.all_gather(inside, axis=1), world.all_gather(x, axis=1))
                for root in range(world.size):
                    same(comm.broadcast(there(comm, x, True), root), values(root, x.shape, x.dtype))
                assert comm.all_reduce(inside, out=inside) is inside
                same(inside, world.all_reduce(x))
                assert comm.all_reduce(np.ones(3, np.int64)).tolist() == [world.size] * 3
                a, b = values(world.rank, (90, 7), np.float32), values(0, (7, 60), np.float32)
                product = plait.matmul_all_reduce(there(comm, a, True), there(comm, b, True), comm)
                same(product, plait.matmul_all_reduce(a, b, world))
                comm.barrier()


@case(ranks=(3, 4, 6), long=(6,), cuda=True)
def sums_of_nodes(world: Communicator) -> None:
    """Leaves in uneven runs, so that a node has several sums of its own, and not all of its ranks
    are in each; bias, another type of result."""
    for count in (world.size, 2 * world.size + 1, 11):
        leaves = plait.comm.Leaves.even(count, world.size)
        host = world.with_leaves(leaves)
        mine = len(leaves.nodes(world.rank))
        for nodes in NODES[world.size]:
            with hierarchical(world, nodes, WAYS[0]) as found:
                comm = found.with_leaves(leaves)
                x = values(world.rank, (mine, 129, 65), np.float32)
                bias = values(9, (65,), np.float32)
                given, added = there(comm, x, True), backend.to_device(bias)
                for dtype in (np.float32, BFLOAT16):
                    same(
                        comm.all_reduce_nodes(given, bias=added, dtype=dtype),
                        host.all_reduce_nodes(x, bias=bias, dtype=dtype),
                    )
                for axis in (0, 1):
                    same(
                        comm.reduce_scatter_nodes(given, axis=axis, bias=added),
                        host.reduce_scatter_nodes(x, axis=axis, bias=bias),
                    )
                out = given[0]
                expected = host.all_reduce_nodes(x)
                assert comm.all_reduce_nodes(given, out=out) is out
                same(out, expected)


@case(ranks=4, cuda=True)
def every_byte_crosses_once(world: Communicator) -> None:
    """Of a sum one partial for each node, of what is gathered each slice."""
    if REAL:
        return
    nodes = [0, 0, 1, 1]
    n = 40_000

    def crossed(comm: Communicator, call: str, x: Any, **options: Any) -> list[int]:
        """Bytes out of each node, over all ranks."""
        fake_nccl.sent.clear()
        getattr(comm, call)(x, **options)
        own = [
            sum(size for rank, size in fake_nccl.sent.items() if nodes[rank] != node)
            if nodes[world.rank] == node
            else 0
            for node in (0, 1)
        ]
        return list(world.all_reduce(np.array(own)))

    with hierarchical(world, nodes, "nccl") as comm:
        x = there(comm, values(world.rank, (n,), np.float32), True)
        half = 4 * n // 2
        assert crossed(comm, "reduce_scatter", x) == [half, half]
        assert crossed(comm, "all_gather", x) == [4 * n * 2] * 2
        assert crossed(comm, "all_reduce", x) == [2 * half, 2 * half]
        assert crossed(comm, "broadcast", x, root=1) == [4 * n, 0]
        assert crossed(comm._across, "all_reduce", x) == [4 * half, 4 * half]


@case(ranks=4, cuda=True)
def one_node_without_peer_memory(world: Communicator) -> None:
    """Then no rank goes by it: each has the same transport."""
    if REAL:
        return
    x = values(world.rank, (5000,), np.float32)
    for opens in (world.rank < 2, world.rank > 1):
        with gpus(world, False, opens=opens), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            comm = device_communicator(on_nodes([0, 0, 1, 1]))
            assert type(comm) is Staged
            same(comm.all_reduce(there(comm, x, True)), world.all_reduce(x))
            comm.close()
        assert len(said) == (world.rank == 0), [str(each.message) for each in said]


@case(ranks=4, limit=60, cuda=True)
def many_at_once(world: Communicator) -> None:
    """Collectives that are started together, on communicators that share a device; messages."""
    nodes = [0, 0, 1, 1]
    for way in WAYS:
        with hierarchical(world, nodes, way) as comm:
            inside = comm.split(nodes[world.rank], world.rank)
            across = comm.split(world.rank % 2, world.rank)
            assert inside is not None
            assert across is not None
            assert isinstance(inside, Peer)
            xs = [values(world.rank, (1500 * k + 1,), np.float32) for k in range(4)]
            given = [there(comm, x, True) for x in xs]
            works = []
            for x in given:
                works += [comm.all_reduce(x, blocking=False), inside.all_gather(x, blocking=False)]
                works += [across.all_reduce(x, blocking=False), comm.all_gather(x, blocking=False)]
            doubles = comm.all_reduce(backend.to_device(xs[3].astype(np.float64)), blocking=False)
            hosts = comm.all_reduce(xs[2], blocking=False)
            everyone = range(world.size)
            mates = [r for r in everyone if nodes[r] == nodes[world.rank]]
            rail = [r for r in everyone if r % 2 == world.rank % 2]
            for k, x in enumerate(xs):
                same(works[4 * k].wait(), world.all_reduce(x))
                of = [values(r, x.shape, np.float32) for r in everyone]
                same(works[4 * k + 1].wait(), np.concatenate([of[r] for r in mates]))
                same(works[4 * k + 2].wait(), of[rail[0]] + of[rail[1]])
                same(works[4 * k + 3].wait(), np.concatenate(of))
            same(doubles.wait(), world.all_reduce(xs[3].astype(np.float64)))
            assert hosts.wait().tobytes() == world.all_reduce(xs[2]).tobytes()
            for step in range(1, world.size):
                dest, source = (world.rank + step) % world.size, (world.rank - step) % world.size
                work = comm.send(given[step], dest, blocking=False)
                out = backend.empty(xs[step].shape, np.float32)
                same(comm.recv(out, source), values(source, xs[step].shape, np.float32))
                work.wait()
            across.close()
            inside.close()
