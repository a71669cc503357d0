"""Collectives over device memory that the ranks map from each other: the CPU's bits, whatever the
GPUs are; where memory cannot be shared, the way through the hosts, and why."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import subprocess
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from cases_device import BFLOAT16, compare
from devices import REAL, SHARED, TESTS, fake_cupy, fibers, gpus
from foreign_array import Other
from harness import case
from mpi4py import MPI

import plait
from plait import backend, models, optim, train
from plait.backend.recorder import Recorder
from plait.comm import Communicator
from plait.comm.alone import Alone
from plait.comm.device_memory import DeviceMemory
from plait.comm.for_device import device_communicator
from plait.comm.peer import Peer
from plait.comm.staged import Staged
from plait.comm.transport import PeerFailed
from plait.data import synthetic
from plait.train.digest import state_digest
from plait.train.run import copies_text, transport_text


def peers(world: Communicator) -> Peer:
    found = world.split(0, world.rank)
    assert found is not None
    comm = device_communicator(found)
    assert isinstance(comm, Peer), type(comm)
    return comm


def values(rank: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """The same on whoever asks for this rank's."""
    x = np.random.default_rng([rank, *shape]).standard_normal(shape) * 100
    return x.astype(dtype)


def there(comm: Communicator, x: Any, inside: bool) -> Any:
    """x on the device: in this rank's arena, or outside of it."""
    out = comm.empty(x.shape, x.dtype) if inside else backend.empty(x.shape, x.dtype)
    backend.put(out, x)
    return out


def same(got: Any, expected: Any) -> None:
    assert backend.on_device(got)
    found = backend.to_host(got)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    differing = np.flatnonzero((found != expected).ravel())
    assert found.tobytes() == expected.tobytes(), (len(differing), differing[:9], found.size)


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


def digest(comm: Communicator, layout: tuple[int, int, int], wanted: Any, **changes: Any) -> str:
    layers = models.gpt(
        layers=2, hidden_dim=24, heads=4, vocabulary=50, sequence_length=12, dropout=0.1
    )
    mesh = plait.Mesh(*layout, comm=comm)
    trainer = train.Trainer(
        layers, synthetic(samples=40, vocabulary=50, sequence_length=12, seed=3), mesh=mesh,
        optimizer=optim.AdamW(learning_rate=1e-2), batch=8, microbatch=3, clip=1.0, seed=5,
        grains=(4, 2), backend=wanted, **changes,
    )  # fmt: skip
    for _ in trainer.steps(3):
        pass
    if wanted == "cuda":
        axes = trainer.mesh.data, trainer.mesh.tensor, trainer.mesh.pipeline
        assert all(isinstance(axis, Peer) for axis in axes if axis.size > 1)
        way = next(axis.transport for axis in axes if axis.size > 1) if comm.size > 1 else ""
        told = transport_text(comm, trainer.mesh)
        names = [name for name, n in zip(("data", "tensor", "pipeline"), layout) if n > 1]
        assert told == ", ".join([comm.transport, *(f"{name} {way}" for name in names)])
        together = trainer.mesh.data.tally["update_gather"][0]
        assert bool(together) == ("zero" in changes and layout[0] > 1)
    trainer.evaluate(trainer.dataset, batches=1)
    found = state_digest(trainer.engine)
    del trainer
    gc.collect()
    mesh.close()
    return found


# Where ranks have a GPU each, kernels wait for each other: on fibers the host waits with them, and
# a pipeline's hosts must not.
TRAININGS: dict[tuple[int, bool], list[tuple[tuple[int, int, int], dict[str, Any]]]] = {
    (2, True): [
        ((2, 1, 1), {"zero": 1}),
        ((1, 2, 1), {"sequence_parallel": True}),
        ((1, 1, 2), {}),
    ],
    (2, False): [
        ((2, 1, 1), {"zero": 1}),
        ((2, 1, 1), {"zero": 1, "precision": "float32"}),
        ((1, 2, 1), {}),
    ],
    (4, True): [((2, 2, 1), {"zero": 1}), ((1, 2, 2), {})],
    (4, False): [((2, 2, 1), {"sequence_parallel": True}), ((4, 1, 1), {})],
}


@case(ranks=(2, 4), cuda=True)
def training_has_the_bits_of_one_rank(world: Communicator) -> None:
    expected: dict[str, str] = {}
    for precision in ("bfloat16", "float32"):
        with gpus(world, True) if REAL else contextlib.nullcontext():
            expected[precision] = digest(
                Alone(), (1, 1, 1), "cuda" if REAL else "cpu", precision=precision
            )
    for shared in SHARED:
        with gpus(world, shared):
            for layout, changes in TRAININGS[world.size, shared]:
                found = digest(world, layout, "cuda", **changes)
                precision = changes.get("precision", "bfloat16")
                assert found == expected[precision], (layout, changes, shared)


@case(ranks=(2, 4), cuda=True)
def a_step_is_one_graph(world: Communicator) -> None:
    """Its collectives too, where kernels wait for each other; replayed with one rank's bits."""
    if REAL:
        return

    def losses(comm: Communicator, layout: tuple[int, int, int], wanted: Any) -> Any:
        layers = models.gpt(
            layers=2, hidden_dim=16, heads=4, vocabulary=50, sequence_length=12, dropout=0.0
        )
        mesh = plait.Mesh(*layout, comm=comm)
        data = synthetic(samples=40, vocabulary=50, sequence_length=12, seed=3)
        trainer = train.Trainer(
            layers, data, mesh=mesh, optimizer=optim.AdamW(learning_rate=1e-2), batch=8,
            microbatch=2, seed=5, grains=(4, 2), backend=wanted, zero=1,
        )  # fmt: skip
        found = [step.loss for step in trainer.steps(5)]
        axis = trainer.mesh.tensor if layout[1] > 1 else trainer.mesh.data
        kept = [axis.empty(1 << 8) for _ in range(64)]  # nowhere where the graph writes
        for x in kept:
            backend.put(x, np.full(1 << 8, 7, np.float32))
        found += [step.loss for step in trainer.steps(7)]
        assert all((backend.to_host(x) == 7).all() for x in kept)
        found.append(state_digest(trainer.engine))
        del trainer, kept
        gc.collect()
        mesh.close()
        return found

    expected = losses(Alone(), (1, 1, 1), "cpu")
    with gpus(world, False):
        for layout in ((2, 1, 1), (1, 2, 1)) if world.size == 2 else ((2, 2, 1),):
            before = fake_cupy.Graph.launches
            assert losses(world, layout, "cuda") == expected, layout
            assert fake_cupy.Graph.launches - before == 5


@case(ranks=2, cuda=True)
def a_graph_has_nothing_of_the_hosts(world: Communicator) -> None:
    """What the host would do once, when it is recorded, and never again."""
    with gpus(world, True):
        comm = peers(world)
        x, there_ = np.ones(3), backend.to_device(np.ones(3, np.float32))
        calls = (
            lambda: comm.all_reduce(x), comm.barrier, lambda: comm.all_gather_object(1),
            lambda: comm.recv(np.empty(3), 1 - world.rank),
        )  # fmt: skip
        Recorder.recording = True
        try:
            for call in calls:
                try:
                    call()
                except RuntimeError as error:
                    text = str(error)
                else:
                    raise AssertionError("a graph that leaves a part out")
                assert "is the host's, and would not be done again" in text
        finally:
            Recorder.recording = False
        same(comm.all_reduce(there_), np.full(3, 2, np.float32))
        comm.close()


OBSTACLES: list[tuple[dict[str, Any], str]] = [
    ({"opens": False, "sees": False}, "(--gpus-per-task hides peers: use --gpus-per-node): "),
    ({"opens": False}, "cudaErrorMapBufferObjectFailed"),
    ({"arrives": False}, "what a kernel writes into the other's memory does not arrive"),
    ({"reaches": False}, "no peer access between devices 0000:"),
    (
        {"opens": False, "name": "NVIDIA H200 MIG 1g.18gb"},
        "are parts of a GPU (MIG), which share no",
    ),
]


@case(ranks=2, cuda=True)
def what_stands_in_the_way(world: Communicator) -> None:
    """Then arrays go through host memory, and rank 0 says why, once."""
    if REAL:
        return
    x = values(world.rank, (9,), np.float32)
    for pretended, cause in OBSTACLES:
        with gpus(world, False, **pretended), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            inner = world.split(0, world.rank)
            assert inner is not None
            comm = device_communicator(inner)
            assert type(comm) is Staged
            same(comm.all_reduce(backend.to_device(x)), world.all_reduce(x))
            comm.close()
        texts = [str(each.message) for each in said]
        assert len(texts) == (world.rank == 0)
        assert all("through host memory: ranks 0 and 1: " in each for each in texts), texts
        assert all(cause in each for each in texts), texts


@case(ranks=4, cuda=True)
def some_ranks_share_memory(world: Communicator) -> None:
    """Rank 3 cannot map what the others have: it goes through host memory, they do not."""
    if REAL:
        return
    with gpus(world, False, opens=world.rank != 3), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        inner = world.split(0, world.rank)
        assert inner is not None
        comm = device_communicator(inner)
        assert type(comm) is Staged
        assert comm.owned is not None
        keys = [each.key for each in comm.owned.processes]
        assert comm.owned.joins(keys[:3])
        assert not comm.owned.joins([keys[0], keys[3]])
        comm.close()
    if world.rank == 0:
        assert "ranks 0 and 3 (and 2 more pairs): " in str(said[0].message)


@case(ranks=2, cuda=True)
def one_rank_without_the_backend(world: Communicator) -> None:
    """Refused on both, for their communicators would differ."""
    context = gpus(world, True) if world.rank == 0 else contextlib.nullcontext()
    with context:
        try:
            plait.communicator(MPI.COMM_WORLD)
        except ValueError as error:
            text = str(error)
        else:
            raise AssertionError("one rank has no device")
    assert 'rank 0 has taken the backend "cuda", rank 1 has not: call plait.backend.use(' in text


@case(ranks=(2, 4), cuda=True)
def a_late_peer(world: Communicator) -> None:
    """Its rank and what the others are in are told."""
    if REAL:
        return
    with gpus(world, False):
        comm = peers(world)
        comm._channel.window.set_deadline(0.2)
        x = there(comm, values(world.rank, (9,), np.float32), True)
        comm.all_reduce(x)
        world.barrier()
        if world.rank != 1:
            for _ in range(2):  # the second has no more to wait for
                try:
                    comm.all_reduce(x)
                    backend.to_host(x)
                except PeerFailed as error:
                    text = str(error)
                else:
                    raise AssertionError("rank 1 was not missed")
                assert f"rank {world.rank} of {world.size} (process {os.getpid()} on host " in text
                assert "rank 1" in text, text
                assert "all_reduce" in text, text
        world.barrier()
        comm.close()


@case(ranks=3, cuda=True)
def a_peer_that_has_ended(world: Communicator) -> None:
    """Whoever waits notices within seconds; the others hear of it instead of waiting longer."""
    if REAL:
        return
    with gpus(world, False):
        comm = peers(world)
        channel, memory = comm._channel, comm.memory
        x = there(comm, values(world.rank, (9,), np.float32), True)
        if world.rank == 0:
            ended = subprocess.Popen(["true"])
            memory._exits[2] = os.pidfd_open(ended.pid)  # as if it were rank 2's
            assert ended.wait() == 0
            assert memory.gone(channel.keys[2])
            assert not memory.gone(channel.keys[1])
            channel._look_after(10.0)  # its device may have done all it had to
            channel._look_after(20.0)
            with stream_that_waits():
                channel._look_after(30.0)  # for something of its own
                channel.in_graph = True
                try:
                    channel._look_after(40.0)
                except PeerFailed as error:
                    text = str(error)
            process = memory.process(channel.keys[2])
            assert f"rank 2 has ended (process {process.pid} on host " in text, text
            assert "rank 0 of 3 (process " in text
        world.barrier()
        try:
            comm.all_reduce(x)
            comm.barrier()
        except PeerFailed as error:
            assert "rank 0 gave up a collective of this communicator" in str(error)  # noqa: PT017
        else:
            raise AssertionError("the communicator goes on")
        world.barrier()
        comm.close()


@contextlib.contextmanager
def stream_that_waits() -> Iterator[None]:
    fake_cupy.Stream.done = False
    try:
        yield
    finally:
        fake_cupy.Stream.done = True


@case(ranks=(2, 3), cuda=True)
def ranks_that_call_different_collectives(world: Communicator) -> None:
    """Both calls and their ranks are told, on every rank."""
    for shared in SHARED:
        with gpus(world, shared):
            comm = peers(world)
            comm._channel.checked = True
            x = there(comm, values(world.rank, (64,), np.float32), True)
            comm.all_reduce(x)
            try:
                comm.all_reduce(x if world.rank else x[:32])
                backend.to_host(x)
            except PeerFailed as error:
                text = str(error)
            else:
                raise AssertionError("nobody noticed")
            assert "all_reduce (sum of float32) of 128 bytes" in text, text
            assert "256 bytes" in text, text
            world.barrier()
            comm.close()


@case(ranks=(2, 3), cuda=True)
def a_rank_that_refuses(world: Communicator) -> None:
    """The others hear of it, whatever its arrays are; of the host's, nothing else comes of it."""
    for shared in SHARED:
        with gpus(world, shared):
            comm = peers(world)
            comm._channel.checked = True
            x = values(world.rank, (64,), np.float32)
            wrong = world.rank == 1
            for array, kind in ((x, ValueError), (there(comm, x, True), PeerFailed)):
                out = backend.beside(array, 65 if wrong else 64, np.float32)
                try:
                    comm.all_reduce(array, out=out)
                except (ValueError, PeerFailed) as error:
                    text, found = str(error), type(error)
                else:
                    raise AssertionError("nobody noticed")
                assert issubclass(found, ValueError if wrong else kind)
                wanted = "out must be writable (64,) float32" if wrong else "a call it refuses"
                assert wanted in text, text
            world.barrier()
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
