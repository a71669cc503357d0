"""Ranks that mean different calls, on transports that compare nothing by themselves: in the checked
mode every rank is told both ranks and both calls, and nothing was moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases_device import BFLOAT16, over_nccl
from cases_hierarchical_device import WAYS, hierarchical
from fake_device import cpu_kernels, device
from harness import case

from plait import backend
from plait.comm import Communicator, Leaves, aware_mpi
from plait.comm.compared import Compared
from plait.comm.for_device import for_device
from plait.comm.nccl import Nccl
from plait.comm.transport import PeerFailed

Try = Callable[[Communicator], Any]


def disagreements(size: int) -> list[tuple[Try, Try, str, str]]:
    """What rank 0 calls and what the others do, and how each is told."""
    host = np.arange(64 * size, dtype=np.float32)
    x, half = backend.to_device(host), backend.to_device(host[: 32 * size].copy())
    narrow, wide = (backend.to_device(host.astype(dtype)) for dtype in (BFLOAT16, np.int64))
    even = [64 * r for r in range(size + 1)]
    cut = [0, 63, *even[2:]]
    other = Leaves.even(2 * size, size)
    whole, part = f"on the device) of {x.nbytes} bytes", f"on the device) of {half.nbytes} bytes"
    return [
        (
            lambda c: c.all_reduce(half),
            lambda c: c.all_reduce(x),
            f"all_reduce (sum of float32 {part}",
            f"all_reduce (sum of float32 {whole}",
        ),
        (
            lambda c: c.all_reduce(x),
            lambda c: c.all_reduce(narrow),
            f"all_reduce (sum of float32 {whole}",
            f"all_reduce (sum of bfloat16 {part}",
        ),
        (
            lambda c: c.all_reduce_nodes(x[None]),
            lambda c: c.all_reduce_nodes(x[None], dtype=BFLOAT16),
            f"all_reduce (sum of float32 {whole}",
            f"all_reduce (sum of float32 to bfloat16 {whole}",
        ),
        (
            lambda c: c.with_leaves(other).all_reduce_nodes(x[None]),
            lambda c: c.all_reduce_nodes(x[None]),
            f"leaves cut at {other.bounds}",
            f"leaves cut at {tuple(range(size + 1))}",
        ),
        (
            lambda c: c.all_reduce(wide, "max"),
            lambda c: c.all_reduce(wide, "min"),
            "all_reduce (max of int64",
            "all_reduce (min of int64",
        ),
        (
            lambda c: c.all_reduce(host),
            lambda c: c.all_reduce(x),
            "all_reduce (sum of float32 on the host)",
            "all_reduce (sum of float32 on the device)",
        ),
        (
            lambda c: c.reduce_scatter(x, bounds=cut),
            lambda c: c.reduce_scatter(x),
            f"1 x {64 * size} x 1 cut at {tuple(cut)}",
            f"1 x {64 * size} x 1 cut at {tuple(even)}",
        ),
        (
            lambda c: c.broadcast(x, 0),
            lambda c: c.broadcast(x, 1),
            f"broadcast of {x.nbytes} bytes of float32 on the device from rank 0",
            f"broadcast of {x.nbytes} bytes of float32 on the device from rank 1",
        ),
        (
            lambda c: c.all_gather(x),
            lambda c: c.all_gather(half),
            f"all_gather of {size * x.nbytes} bytes of float32 on the device",
            f"all_gather of {size * half.nbytes} bytes of float32 on the device",
        ),
        (lambda c: c.barrier(), lambda c: c.broadcast(x), "rank 0 calls barrier", "broadcast of"),
        (
            lambda c: c.all_to_all(x, cut, cut),
            lambda c: c.all_to_all(x, even, even),
            "rank 0 sends rank 1 260 bytes in its all_to_all of float32 on the device",
            "rank 1 receives 256 from it",
        ),
    ]


def told(world: Communicator, comm: Compared) -> None:
    comm.checked = True
    for zero, others, first, second in disagreements(world.size):
        try:
            (others if world.rank else zero)(comm)
        except PeerFailed as error:
            text = str(error)
        else:
            raise AssertionError(f"nobody noticed: {first}, {second}")
        assert text.startswith(f"rank {world.rank}: rank 0 "), text
        assert ", rank 1 " in text, text
        assert first in text, text
        assert second in text, text
    x = backend.to_device(np.ones(64, np.float32))
    out = backend.empty(65 if world.rank == 1 else 64, np.float32)
    try:
        comm.all_reduce(x, out=out)
    except (ValueError, PeerFailed) as error:
        said, kind = str(error), type(error)
    assert kind is (ValueError if world.rank == 1 else PeerFailed)
    assert ("out must be writable" if world.rank == 1 else "rank 1 a call it refuses") in said, said
    assert (backend.to_host(comm.all_reduce(x)) == world.size).all()  # nobody was left behind


@case(ranks=(2, 3))
def nccl_in_the_checked_mode(world: Communicator) -> None:
    with device(cpu_kernels()), over_nccl():
        backend.use("cuda")
        inner = world.split(0, world.rank)
        assert inner is not None
        comm = for_device(inner, None)
        assert isinstance(comm, Nccl)
        told(world, comm)
        comm.close()


@case(ranks=2)
def a_cuda_aware_mpi_in_the_checked_mode(world: Communicator) -> None:
    with device(cpu_kernels()):
        backend.use("cuda")
        inner = world.split(0, world.rank)
        assert inner is not None
        refusal, aware_mpi.refusal = aware_mpi.refusal, lambda: None
        try:
            comm = aware_mpi.direct(inner)
        finally:
            aware_mpi.refusal = refusal
        assert comm is not None
        told(world, comm)
        comm.close()


@case(ranks=3, cuda=True)
def several_nodes_in_the_checked_mode(world: Communicator) -> None:
    with hierarchical(world, [0, 0, 1], WAYS[0]) as comm:
        told(world, comm)
