"""Collectives over device memory that the ranks map from each other: the CPU's bits, whatever the
GPUs are; from a program of one's own, too."""

from __future__ import annotations

import contextlib
import gc
import io
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
from cases_device import BFLOAT16, compare
from devices import REAL, SHARED, TESTS, fibers, gpus, peers, same, there, values
from foreign_array import Other
from harness import case

import plait
from plait import backend, optim
from plait.comm import Communicator
from plait.comm.after import Norm
from plait.comm.alone import Alone
from plait.comm.device_memory import DeviceMemory
from plait.comm.for_device import device_communicator
from plait.comm.peer import Peer
from plait.train.run import copies_text


@case(ranks=(2, 4), cuda=True)
def memory_is_shared(world: Communicator) -> None:
    for shared in SHARED:
        with gpus(world, shared):
            memory = DeviceMemory(world, 1 << 20)
            keys = [each.key for each in memory.processes]
            assert memory.text == ""
            assert memory.joins(keys)
            assert not memory.joins([*keys, "another"])
            assert memory.crowded(keys) == shared
            block = memory.arena.allocate(4096)
            backend.put(
                backend.view(block.address, (1024,), np.float32, block),
                np.full(1024, world.rank, np.float32),
            )
            backend.synchronize()  # what is put is there when peers are told where
            offsets = world.all_gather_object(block.offset)
            for rank, key in enumerate(keys):
                x = memory.view(key, offsets[rank], (1024,), np.float32)
                assert (backend.to_host(x) == rank).all()
                assert not memory.gone(key)
            world.barrier()
            del x, block
            memory.close(world)


@case(ranks=(2, 3, 4), cuda=True)
def collectives_have_the_bits_of_the_cpu(world: Communicator) -> None:
    for shared in SHARED:
        with gpus(world, shared):
            comm = peers(world)
            assert comm.transport == ("peer, split" if shared else "peer")
            for n in (0, 1, 5, 700):
                compare(world, comm, n)
            for n, dtype in ((1, np.float32), (3001, np.float32), (515, BFLOAT16), (77, np.int64)):
                x = values(world.rank, (n,), dtype)
                same(comm.all_reduce(there(comm, x, True)), world.all_reduce(x))
                same(comm.reduce_scatter(there(comm, x, True)), world.reduce_scatter(x))
                same(comm.all_gather(there(comm, x, True)), world.all_gather(x))
                same(comm.broadcast(there(comm, x, True), 1), values(1, (n,), dtype))
            x = values(world.rank, (6, 5), np.float32)
            same(comm.all_reduce(there(comm, x, True), "max"), world.all_reduce(x, "max"))
            same(comm.all_gather(there(comm, x, True), axis=1), world.all_gather(x, axis=1))
            inside = there(comm, x, True)
            assert comm.all_reduce(inside, out=inside) is inside
            same(inside, world.all_reduce(x))
            x = values(world.rank, (5,), np.float64)  # which no kernel adds
            same(comm.all_reduce(backend.to_device(x)), world.all_reduce(x))
            assert comm.all_reduce(np.ones(3, np.int64)).tolist() == [world.size] * 3
            comm.barrier()
            comm.close()


@case(ranks=(2, 4), cuda=True)
def sums_of_nodes(world: Communicator) -> None:
    """Leaves in uneven runs, bias, another type of result."""
    leaves = plait.comm.Leaves.even(2 * world.size + 1, world.size)
    host = world.with_leaves(leaves)
    nodes = len(leaves.nodes(world.rank))
    for shared in SHARED:
        with gpus(world, shared):
            comm = peers(world).with_leaves(leaves)
            for shape in ((3, 7), (129, 65)):
                x = values(world.rank, (nodes, *shape), np.float32)
                bias = values(9, shape[-1:], np.float32)
                x_there, bias_there = there(comm, x, True), backend.to_device(bias)
                for dtype in (np.float32, BFLOAT16):
                    same(
                        comm.all_reduce_nodes(x_there, bias=bias_there, dtype=dtype),
                        host.all_reduce_nodes(x, bias=bias, dtype=dtype),
                    )
                for axis in (0, 1):
                    work = comm.reduce_scatter_nodes(x_there, axis=axis, blocking=False)
                    same(work.wait(), host.reduce_scatter_nodes(x, axis=axis))
                out = x_there[0]
                expected = host.all_reduce_nodes(x)
                assert comm.all_reduce_nodes(x_there, out=out) is out
                same(out, expected)
            comm.close()


@case(ranks=(2, 4), cuda=True)
def many_at_once(world: Communicator) -> None:
    """Collectives that are started together, on two communicators, some through the host."""
    for shared in SHARED:
        with gpus(world, shared):
            comm = peers(world)
            half = comm.split(world.rank % 2)
            assert half is not None
            assert isinstance(half, Peer) == (world.size > 2)
            xs = [values(world.rank, (100 * k + 1,), np.float32) for k in range(4)]
            works = [comm.all_reduce(there(comm, x, True), blocking=False) for x in xs]
            works += [half.all_gather(there(comm, x, True), blocking=False) for x in xs]
            doubles = comm.all_reduce(backend.to_device(xs[3].astype(np.float64)), blocking=False)
            hosts = comm.all_reduce(xs[2])
            for x, work in zip(xs, works):
                same(work.wait(), world.all_reduce(x))
            for x, work in zip(xs, works[4:]):
                mates = [r for r in range(world.size) if r % 2 == world.rank % 2]
                same(work.wait(), np.concatenate([values(r, x.shape, np.float32) for r in mates]))
            same(doubles.wait(), world.all_reduce(xs[3].astype(np.float64)))
            assert hosts.tobytes() == world.all_reduce(xs[2]).tobytes()
            half.close()
            comm.close()


@case(ranks=(2, 4), cuda=True)
def messages_and_views(world: Communicator) -> None:
    for shared in SHARED:
        with gpus(world, shared):
            comm = peers(world)
            x = there(comm, values(world.rank, (world.rank + 2, 3), np.float32), True)
            views = comm.views(x)
            assert views is not None
            for rank, view in enumerate(views[0]):
                same(view, values(rank, (rank + 2, 3), np.float32))
            comm.barrier()
            assert comm.views(there(comm, np.zeros(3), False)) is None
            assert comm.views(x[:, :2]) is None
            after, before = ((world.rank + d) % world.size for d in (1, -1))
            for inside in (True, False):
                mine = there(comm, values(world.rank, (41, 9), np.float32), inside)
                work = comm.send(mine, after, blocking=False)
                out = backend.empty((41, 9), np.float32)
                same(comm.recv(out, before), values(before, (41, 9), np.float32))
                work.wait()
            several = [there(comm, values(world.rank, (7, k), np.float32), True) for k in (1, 2, 3)]
            works = [comm.send(x, after, tag=k % 2, blocking=False) for k, x in enumerate(several)]
            for k, tag in ((1, 1), (0, 0), (2, 0)):
                out = backend.empty((7, k + 1), np.float32)
                same(comm.recv(out, before, tag), values(before, (7, k + 1), np.float32))
            for work in works:
                work.wait()
            large = backend.to_device(values(world.rank, (1 << 20,), np.float32))  # as the arena
            work = comm.send(large, after, blocking=False)
            same(comm.recv(backend.empty(1 << 20), before), values(before, (1 << 20,), np.float32))
            work.wait()
            small = comm.send(large[:5], after, blocking=False)
            try:
                comm.recv(large[:6], before)
            except ValueError as error:
                text = str(error)
            assert text.startswith(f"recv: rank {before} sends 20 bytes, out (6,) float32 has 24")
            small.wait()  # it was fetched, and is the sender's again
            comm.close()


@case(ranks=2, cuda=True)
def arrays_outside_are_counted(world: Communicator) -> None:
    for shared in SHARED:
        with gpus(world, shared, room=1 << 20):
            comm = peers(world)
            x = values(world.rank, (1000,), np.float32)
            inside, outside = there(comm, x, True), there(comm, x, False)
            comm.all_reduce(inside, out=inside)
            comm.all_reduce(outside[:100], out=outside[:100])  # so little is always copied
            assert comm.outside == [0, 0]
            comm.all_reduce(outside, out=outside)
            assert comm.outside == [1, 4000]
            comm.all_reduce(outside, out=inside)
            comm.with_leaves(comm.leaves).all_reduce(inside, out=inside)
            assert comm.outside == [2, 8000]
            said = copies_text(SimpleNamespace(data=comm, tensor=Alone(), pipeline=Alone()))
            assert said.startswith("peer memory: 2 arrays of collectives, 8"), said
            many = [comm.empty(1 << 19) for _ in range(5)]  # 10 MB
            comm.all_reduce(many[-1][:1000], out=many[-1][:1000])
            assert comm.outside[0] == 3
            del inside, many
            comm.close()


@case(ranks=2, cuda=True)
def arrays_of_other_libraries(world: Communicator) -> None:
    """By DLPack, without a copy: on the device and on the host."""
    if REAL:
        return
    for shared in SHARED:
        with gpus(world, shared):
            comm = peers(world)
            x = values(world.rank, (9,), np.float32)
            expected = world.all_reduce(x)
            for where in ((2, 0), (1, 0)):
                given, out = Other(x.copy(), where=where), Other(np.zeros_like(x), where=where)
                assert comm.all_reduce(given, out=out) is out
                assert out.array.tobytes() == expected.tobytes()
                work = comm.all_reduce(given, out=given, blocking=False)
                assert work.wait() is given
                assert given.array.tobytes() == expected.tobytes()
                weight = np.linspace(1, 2, 9, dtype=np.float32)
                wanted = world.all_reduce(x, residual=x, norm=Norm(weight))
                given, residual = (Other(x.copy(), where=where) for _ in "xr")
                norm: Any = Norm(Other(weight, where=where))  # type: ignore[arg-type]
                found = comm.all_reduce(given, residual=residual, norm=norm, out=given)
                assert found.stream is given
                assert given.array.tobytes() == wanted.stream.tobytes()
                normed = found.normed if where == (1, 0) else backend.to_host(found.normed)
                assert normed.tobytes() == wanted.normed.tobytes()
            same(comm.all_reduce(Other(x, where=(2, 0))), expected)
            assert isinstance(comm.all_reduce(Other(x)), np.ndarray)
            comm.close()


@case(ranks=(2, 4), cuda=True)
def fused_functions(world: Communicator) -> None:
    """Of device arrays, read and written where they lie or not: what host arrays get."""
    rows = [3, 5, 4, 1][world.rank]
    a, b = values(world.rank, (12, rows), np.float32), values(world.rank, (rows, 7), np.float32)
    part, v = values(world.rank, (130 + rows, 8), np.float32), values(0, (8, 5), np.float32)
    n = 1001
    own = n * (world.rank + 1) // world.size - n * world.rank // world.size
    given = {"grad": values(world.rank, (n,), np.float32), "weight": values(7, (n,), np.float32)}

    def update(comm: Communicator, take: Any) -> Any:
        state = {name: take(np.zeros(own, np.float32)) for name in optim.AdamW().state}
        grad, weight, master = take(given["grad"]), take(given["weight"]), take(np.ones(own, "f4"))
        for step in (1, 2):
            plait.reduce_update_gather(
                grad, weight, master, state, comm, optim.AdamW(), step=step, scale=0.5
            )
        return weight

    expected = (
        plait.matmul_all_reduce(a, b, world),
        plait.matmul_reduce_scatter(a, b, world, axis=1),
        plait.all_gather_matmul(part, v, world),
        update(world, np.copy),
    )
    for shared in SHARED:
        with gpus(world, shared):
            comm = peers(world)
            for inside in (True, False):

                def take(x: Any, comm: Communicator = comm, inside: bool = inside) -> Any:
                    return there(comm, x, inside)

                x, w = take(a), take(b)
                same(plait.matmul_all_reduce(x, w, comm, take(expected[0] * 0)), expected[0])
                same(plait.matmul_reduce_scatter(x, w, comm, axis=1), expected[1])
                same(plait.all_gather_matmul(take(part), take(v), comm), expected[2])
                same(update(comm, take), expected[3])
            assert comm.tally["reduce_update_gather"] == [4, 4 * given["grad"].nbytes]
            del x, w
            comm.close()


@case(ranks=2, cuda=True)
def the_example(world: Communicator) -> None:
    """As it stands, but for its sizes."""
    script = (TESTS.parent / "examples" / "gpu_collectives.py").read_text()
    for size, small in (("1024", "16"), ("256", "8"), ("100_000", "1_000")):
        assert size in script
        script = script.replace(size, small)
    for shared in SHARED:
        with gpus(world, shared):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                found: dict[str, Any] = {}
                exec(script, found)
            transport = "peer, split" if shared else "peer"
            assert (f"transport {transport}\n" in said.getvalue()) == (world.rank == 0)
            a, b = (backend.to_host(found[name]) for name in "ab")
            expected = world.all_reduce(a.astype(np.float64) @ b)
            assert np.allclose(backend.to_host(found["y"]), expected, rtol=1e-5)
            del found


@case(ranks=2, cuda=True)
def nothing_is_left(world: Communicator) -> None:
    """Memory, mappings, files and names: as many after as before."""

    def held() -> tuple[int, int, int]:
        gc.collect()
        names = len(os.listdir("/dev/shm"))
        return 0 if REAL else fibers().device_allocations(), len(os.listdir("/proc/self/fd")), names

    for shared in SHARED:
        with gpus(world, shared):
            for attempt in range(2):  # what stays is there after the first
                before = held() if attempt else None
                inner = world.split(0, world.rank)
                assert inner is not None
                comm = device_communicator(inner)
                x = there(comm, values(world.rank, (9,), np.float32), True)
                comm.all_reduce(x, out=x)
                half = comm.split(0, world.rank)
                assert half is not None
                half.all_reduce(x, out=x)
                del x
                half.close()
                comm.close()
                del half, comm, inner
                world.barrier()
                assert before in (None, held())
