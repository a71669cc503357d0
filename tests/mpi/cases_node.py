"""What only the node transport has: arrays in the arena, its rounds, and the death of a peer."""

from __future__ import annotations

import gc
import os
import warnings
from functools import partial
from itertools import product

import numpy as np
import pytest
from harness import case, kept
from mpi4py import MPI
from reference import FLOATS, RANKS, assert_same, finish, nodes_of, of_ranks, tree, values
from transports import transports

from plait.comm import Communicator, Leaves
from plait.comm.choose import communicator
from plait.comm.hierarchical import Hierarchical
from plait.comm.mpi import Mpi
from plait.comm.node import Node
from plait.comm.work import progress


def both(world: Communicator) -> list[Communicator]:
    """The default staging, and the smallest."""
    return [world, *(comm for comm in transports() if comm.transport == "node")]


@case((2, 3, 4))
def arrays_in_the_arena(world: Communicator) -> None:
    """Any rank's input and output may lie there or not; the bits are the same."""
    for comm, n, dtype in product(both(world), (0, 5, 20_001), FLOATS[:2]):
        x = of_ranks((n,), dtype, comm.size)
        wanted = tree(x).astype(dtype)
        for sources, outs in product((0, 1, 2), (0, 1, 2)):
            source = (comm.empty if sources > comm.rank % 2 else np.empty)(n, dtype)
            out = (comm.empty if outs > (comm.rank + 1) % 2 else np.empty)(n, dtype)
            source[:] = x[comm.rank]
            what = f"{n} {dtype} {sources} {outs}"
            assert comm.all_reduce(source, out=out) is out
            assert_same(out, wanted, f"all_reduce {what}")
            assert_same(comm.all_gather(source), np.concatenate(x), f"all_gather {what}")
            root = comm.size - 1
            assert_same(comm.broadcast(source, root), x[root], f"broadcast {what}")
            source[:] = x[comm.rank]
            start, stop = (r * n // comm.size for r in (comm.rank, comm.rank + 1))
            assert_same(comm.reduce_scatter(source), wanted[start:stop], f"reduce_scatter {what}")
            assert_same(comm.all_reduce(source, out=source), wanted, f"in place {what}")


@case((2, 3, 4))
def nodes_in_the_arena(world: Communicator) -> None:
    for base in both(world):
        comm = base.with_leaves(Leaves.even(11, base.size))
        for shape, axis in (((3, 500, 7), 1), ((70_001,), 0), ((40, 900), 1)):
            x = of_ranks(shape, np.float32, 11)
            leaves = comm.leaves.bounds
            own = nodes_of(x, leaves[comm.rank], leaves[comm.rank + 1])
            nodes = comm.empty(own.shape)
            nodes[:] = own
            start, stop = (r * shape[axis] // comm.size for r in (comm.rank, comm.rank + 1))
            found = comm.reduce_scatter_nodes(nodes, axis=axis)
            assert_same(found, tree(x).take(range(start, stop), axis), f"scatter {shape}")
            assert_same(comm.all_reduce_nodes(nodes, out=nodes[-1]), tree(x), f"over {shape}")


@case((2, 4))
def an_array_of_the_arena_is_free_after_the_collective(world: Communicator) -> None:
    """Every rank writes its input at once after each call: no peer may still be reading it."""
    for comm in both(world):
        x = comm.empty(20_000)
        out = np.empty(20_000, np.float32)
        for step in range(40):
            x[:] = step + comm.rank
            comm.all_reduce(x, out=out)
            x[:] = np.nan
            assert (out == comm.size * step + comm.size * (comm.size - 1) / 2).all()
            x[:] = step
            gathered = comm.all_gather(x[: comm.rank + 1], bounds=triangle(comm.size))
            x[:] = np.nan
            assert (gathered == step).all()


def triangle(size: int) -> list[int]:
    return [rank * (rank + 1) // 2 for rank in range(size + 1)]


@case((2, 3))
def the_arena_takes_back_what_is_dropped(world: Communicator) -> None:
    arena = world._memory.arena  # type: ignore[attr-defined]
    before = arena.used
    for _ in range(50):
        x = world.empty((3, 1_000_000))
        x[:] = 1
        part = x[1]
        del x
        assert part.sum() == 1_000_000
    assert arena.used <= before + (40 << 20)
    arrays = [world.empty(n, np.int8) for n in (0, 1, 63, 64, 65, 100_000)]
    for i, array in enumerate(arrays):
        array[:] = i
    assert [set(array.tolist()) for array in arrays] == [set(), {1}, {2}, {3}, {4}, {5}]
    assert all(array.__array_interface__["data"][0] % 64 == 0 for array in arrays)


@case(4)
def large_arrays_through_the_default_staging(world: Communicator) -> None:
    for n, dtype in product((1_500_007,), FLOATS[:2]):
        x = of_ranks((n,), dtype, world.size)
        work = world.all_reduce(x[world.rank].copy(), blocking=False)
        gathered = world.all_gather(x[world.rank], blocking=False)
        assert_same(work.wait(), tree(x).astype(dtype), f"all_reduce {dtype}")
        assert_same(gathered.wait(), np.concatenate(x), f"all_gather {dtype}")


@case((2, 4))
def transports_agree_to_the_bit(world: Communicator) -> None:
    for n in (4000, 77_777):
        nodes = values((1, n), np.float32, world.rank)
        bias = values((n,), np.float32, 17)
        found = [
            finish(c.all_reduce_nodes(nodes, bias=bias, dtype=FLOATS[1])) for c in transports()
        ]
        for other in found[1:]:
            assert_same(other, found[0], f"{n}")


@case(3)
def collectives_move_while_their_rank_only_pokes(world: Communicator) -> None:
    x = of_ranks((50_000,), np.float32, world.size)
    work = world.all_reduce(x[world.rank].copy(), blocking=False)
    while not work.test():
        progress()
        os.sched_yield()
    assert_same(work.wait(), tree(x), "poked")


@case(2)
def a_rank_that_gives_up_is_named(world: Communicator) -> None:
    comm = world.split(0)
    if world.rank == 1:
        comm._window.abort()  # type: ignore[union-attr]
    else:
        with pytest.raises(RuntimeError, match="rank 1 of this node gave up"):
            comm.all_reduce(np.zeros(10, np.float32))


@case(RANKS[1:])
def a_living_peer_is_not_gone(world: Communicator) -> None:
    from mpi4py import MPI

    memory = communicator(MPI.COMM_WORLD)._memory  # type: ignore[attr-defined]
    assert not any(memory.gone(rank) for rank in range(world.size))
    world.barrier()
    if world.rank == 0:
        memory._sockets[1].close()
        memory._sockets[1] = None
    world.barrier()
    if world.rank == 1:
        assert memory.gone(0), "the peer's end is closed"


@case((2, 4))
def what_a_dropped_communicator_held_is_closed(world: Communicator) -> None:
    """By plait, not by Python, which would warn of it."""
    for _ in range(2):  # the first time it is what earlier cases have left
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ResourceWarning)
            gc.collect()
            before = len(os.listdir("/proc/self/fd"))
            with kept():
                comm = communicator(MPI.COMM_WORLD)
            assert len(os.listdir("/proc/self/fd")) > before
            comm.close()
            del comm
            gc.collect()
    assert not said
    assert len(os.listdir("/proc/self/fd")) == before


@case((1, 2, 3))
def plans_run_again_on_what_the_arrays_hold(world: Communicator) -> None:
    for comm, n, dtype in product([*transports(), world], (0, 5, 20_001), FLOATS[:2]):
        for make in (comm.empty, np.empty):
            x, out = make(n, dtype), make(n, dtype)
            odd = make((n, 2), dtype)[:, 1]
            rows = np.empty(n * comm.size, dtype)
            plans = {
                "out": comm.plan("all_reduce", x, out=out),
                "max": comm.plan("all_reduce", x, "max"),
                "strided": comm.plan("all_reduce", odd),
                "gather": comm.plan("all_gather", x, out=rows),
                "barrier": comm.plan("barrier"),
                "place": comm.plan("all_reduce", x, out=x),
            }
            for seed in range(3):
                values = [v + seed for v in of_ranks((n,), dtype, comm.size)]
                x[:] = odd[:] = values[comm.rank]
                work = comm.all_reduce(x, blocking=False) if seed == 1 else None  # under way
                total = tree(values).astype(dtype)
                assert plans["out"]() is out
                assert_same(out, total, f"{comm.transport} {n} {dtype}")
                assert_same(plans["max"](), np.max(values, axis=0), "max")
                assert_same(plans["strided"](), total, "strided")
                assert_same(plans["gather"](), np.concatenate(values), "gather")
                assert plans["barrier"]() is None
                work is None or assert_same(work.wait(), total, "started before")
                assert plans["place"]() is x
                assert_same(x, total, "in place")
    with pytest.raises(ValueError, match="'all_reduced' is none of all_reduce, "):
        world.plan("all_reduced", np.zeros(1))
    with pytest.raises(ValueError, match="no blocking="):
        world.plan("all_reduce", np.zeros(1), blocking=False)
    with pytest.raises(ValueError, match="no sum of"):
        world.plan("all_reduce", np.zeros(1, "c8"))


@case((2, 3), limit=20.0)
def what_one_rank_refuses_is_told_on_all(world: Communicator) -> None:
    """And what is unequal; nobody waits, and the communicator goes on."""
    odd = world.rank == 1
    for comm, n in product(both(world), (12, 60_000)):
        x, size = np.zeros(n, np.float32), comm.size
        root, bounds = 0 if size == 2 else 2, [n * rank // size for rank in range(size + 1)]
        whole = np.zeros(size * n, np.float32)
        calls = [
            partial(comm.all_reduce, x.astype("c8") if odd else x),
            partial(comm.all_reduce, x[1:] if odd else x),
            partial(comm.all_reduce, x.astype(np.float16) if odd else x),
            partial(comm.all_reduce, x, "max" if odd else "sum"),
            partial(comm.all_reduce, x, out=x[::2] if odd else x),
            partial(comm.all_reduce_nodes, x[None], dtype=FLOATS[1] if odd else np.float32),
            partial(comm.reduce_scatter, x, axis=1 if odd else 0),
            partial(comm.all_gather, x, out=whole[2:] if odd else whole),
            partial(comm.all_gather, x, bounds=[0, 1] if odd else None),
            partial(comm.all_gather, x.view(np.int32) if odd else x),
            partial(comm.all_to_all, x.view(np.int32) if odd else x, bounds, bounds),
            partial(comm.broadcast, x[: n // 2] if odd else x, root),
            partial(comm.broadcast, x.view(np.int32) if odd else x, root),
        ]
        for call in calls:
            # the root of a little broadcast, and who hears only it, have nothing to hear
            if call.func == comm.broadcast and n == 12 and not odd:
                call()
                continue
            with pytest.raises(ValueError, match=None if odd else "rank 1 in a"):
                call()
        fewer = [0, *[bound - 1 for bound in bounds[1:]]]  # rank 1 sends one row less to rank 0
        with pytest.raises(ValueError, match="not all ranks receive as much as is sent") as error:
            comm.all_to_all(x[:-1] if odd else x, fewer if odd else bounds, bounds)
        text = (
            f"rank 1 sends {4 * (n // size - 1)} bytes to rank 0, which receives {4 * (n // size)}"
        )
        assert (text in str(error.value)) == (comm.rank == 0)
        assert comm.all_reduce(np.ones(3, np.float32))[0] == size
        assert comm.all_reduce(np.ones(50_000, np.float32))[-1] == size


@case((2,), limit=20.0)
def after_a_disagreement_inside_a_node_among_others_no_collective_hangs(
    world: Communicator,
) -> None:
    """Other nodes have heard nothing of it, so it cannot go on; here there are none."""
    assert isinstance(world, Node)
    x = np.zeros(50_000, np.float32)
    for call, odd in (
        ("all_gather", x.view(np.int32)),
        ("broadcast", x.view(np.int32)),
        ("all_reduce", x[:-2]),
    ):
        comm = Hierarchical(Mpi(MPI.COMM_WORLD), world._topology, [0, 0])
        comm.all_reduce(x)
        with pytest.raises(ValueError, match="all ranks must "):
            getattr(comm, call)(odd if world.rank == 1 else x)
        with pytest.raises(RuntimeError, match="disagreed about an earlier collective"):
            getattr(comm, call)(x)


@case((2, 3), limit=15.0)
def different_collectives_are_named(world: Communicator) -> None:
    """In a layer of the user's own, say. What one rank did is told on those that meet it."""
    found = world.split(0)
    assert found is not None
    x = np.zeros(100_000, np.float32)
    call = found.all_reduce if found.rank == 0 else found.all_gather
    with pytest.raises(RuntimeError, match="all ranks must call the same collectives") as error:
        call(x)
    if found.rank == 0:
        assert "rank 0 is in an all_reduce (sum of float32) of 400000 bytes" in str(error.value)
        assert "rank 1 in an all_gather (float32) of" in str(error.value)
    world.barrier()


@case((2, 3))
def plans_read_arrays_that_a_collective_copies(world: Communicator) -> None:
    """Strided nodes, and a bias that is repeated for ranks without a whole row."""
    for comm in [*transports(), world]:
        wide, bias = np.zeros((1, comm.size, 4), np.float32), np.zeros(4, np.float32)
        few = wide[:, :1, :2]
        plans = {
            "nodes": comm.plan("all_reduce_nodes", wide[:, :, ::2]),
            "bias": comm.plan("all_reduce_nodes", few.copy(), bias=bias[:2]),
            "odd bias": comm.plan("all_reduce_nodes", wide[:, :, :2].copy(), bias=bias[::2]),
            "scatter": comm.plan("reduce_scatter", wide[0, :, ::2]),
            "scatter nodes": comm.plan("reduce_scatter_nodes", wide[:, :, ::2], bias=bias[:2]),
        }
        for step in (1, 2):
            wide[:], bias[:] = step, 10 * step
            total = comm.size * step
            assert (plans["nodes"]() == total).all()
            assert (plans["bias"]() == 10 * step).all()
            assert (plans["odd bias"]() == 10 * step).all()
            assert (plans["scatter"]() == total).all()
            assert (plans["scatter nodes"]() == total + 10 * step).all()


@case((2, 3))
def a_disagreement_is_told_where_it_belongs(world: Communicator) -> None:
    """Not by the wait for a collective before it or after it."""
    for comm, n in product(both(world), (10, 50_000)):
        x = np.ones(n, np.float32)
        before, between = (comm.all_reduce(x, blocking=False) for _ in range(2))
        odd = comm.all_reduce(x[: n - (comm.rank == 1)].copy(), blocking=False)
        assert (comm.all_reduce(x) == comm.size).all()
        assert (before.wait() == comm.size).all()
        with pytest.raises(ValueError, match="the same op, type and size"):
            odd.wait()
        assert (between.wait() == comm.size).all()
