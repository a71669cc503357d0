"""Where device memory cannot be shared, the way through the hosts, and why; peers that are late,
gone, or in another collective."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from devices import REAL, SHARED, fake_cupy, gpus, peers, same, there, values
from harness import case
from mpi4py import MPI

import plait
from plait import backend
from plait.comm import Communicator
from plait.comm.for_device import device_communicator
from plait.comm.staged import Staged
from plait.comm.transport import PeerFailed

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
            warnings.simplefilter("always", UserWarning)
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
        warnings.simplefilter("always", UserWarning)
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
    fake_cupy.fault = 600
    try:
        yield
    finally:
        fake_cupy.fault = 0


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
def an_all_to_all_that_one_rank_is_not_in(world: Communicator) -> None:
    """Nobody knows how long it takes before all have said what they mean: also in stages it is both
    calls that are told, and not what the hosts of one say to each other."""
    bounds = [2 * rank for rank in range(world.size + 1)]
    for shared, refuses in itertools.product(SHARED, (True, False)):
        with gpus(world, shared):
            comm = peers(world)
            comm._channel.checked = True
            x = there(comm, values(world.rank, (bounds[-1],), np.float32), True)
            comm.all_to_all(x, bounds, bounds)
            alone = world.rank == 1
            try:
                if alone and not refuses:
                    comm.all_reduce(x)
                else:
                    comm.all_to_all(x, [*bounds[:-1], bounds[-1] + alone], bounds)
                backend.to_host(x)
            except (ValueError, PeerFailed) as error:
                text, found = str(error), type(error)
            else:
                raise AssertionError("nobody noticed")
            if alone and refuses:
                assert found is ValueError
            else:
                other = "a call it refuses" if refuses else "an all_reduce (sum of float32) of "
                assert "in an all_to_all (float32)" in text, text
                assert f"in {other}" in text, text
                assert "rank 1 is in" in text or ", rank 1 in " in text, text
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
