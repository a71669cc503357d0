"""Training on a device's arrays over several ranks, through host memory: the bits of one CPU rank.

The device is a stand-in (tests/fibers/fake_cupy.py) with the CPU's kernels, so what can differ is
where arrays go.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness import case
from mpi4py import MPI

import plait
from plait import backend, models, optim, train
from plait.comm import Communicator, aware_mpi
from plait.comm.after import Norm, Normed
from plait.comm.alone import Alone
from plait.comm.combine import BFLOAT16
from plait.comm.for_device import for_device
from plait.comm.nccl import Nccl
from plait.comm.staged import Staged
from plait.comm.transport import PeerFailed
from plait.data import synthetic
from plait.train.digest import state_digest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fibers"))
import fake_cupy
import fake_nccl
from fake_device import cpu_kernels, device

LAYOUTS: dict[int, list[tuple[tuple[int, int, int], dict[str, Any]]]] = {
    2: [((2, 1, 1), {"zero": 1}), ((1, 2, 1), {"sequence_parallel": True}), ((1, 1, 2), {})],
    4: [((2, 2, 1), {"zero": 1}), ((1, 2, 2), {"sequence_parallel": True}), ((2, 1, 2), {})],
}


def digest(comm: Communicator, layout: tuple[int, int, int], wanted: Any, **changes: Any) -> str:
    layers = models.gpt(
        layers=2, hidden_dim=24, heads=4, vocabulary=50, sequence_length=12, dropout=0.1
    )
    trainer = train.Trainer(
        layers, synthetic(samples=40, vocabulary=50, sequence_length=12, seed=3),
        mesh=plait.Mesh(*layout, comm=comm), optimizer=optim.AdamW(learning_rate=1e-2), batch=8,
        microbatch=3, clip=1.0, seed=5, grains=(4, 2), backend=wanted, **changes,
    )  # fmt: skip
    for _ in trainer.steps(3):
        pass
    held = trainer.engine.master.values()
    assert all(backend.on_device(x) == (wanted == "cuda") for x in held)
    trainer.evaluate(trainer.dataset, batches=1)
    return state_digest(trainer.engine)


@case(ranks=(2, 4))
def device_training_has_the_bits_of_the_cpu(world: Communicator) -> None:
    expected = digest(Alone(), (1, 1, 1), "cpu")
    with device(cpu_kernels()):
        for layout, changes in LAYOUTS[world.size]:
            assert digest(world, layout, "cuda", **changes) == expected, layout


@case(ranks=(2, 3))
def staged_collectives(world: Communicator) -> None:
    """Every collective of device arrays gives what host arrays get; the two kinds do not mix."""
    values = [np.arange(12, dtype=np.float32).reshape(4, 3) / 7 + r for r in range(world.size)]
    with device(cpu_kernels()):
        backend.use("cuda")
        inner = world.split(0, world.rank)
        assert inner is not None
        comm = Staged(inner)
        mine, there = values[world.rank], backend.to_device(values[world.rank])

        def same(got: Any, expected: Any) -> None:
            assert backend.on_device(got)
            assert backend.to_host(got).tobytes() == expected.tobytes()

        same(comm.all_reduce(there), world.all_reduce(mine))
        same(comm.all_reduce(there, "max"), world.all_reduce(mine, "max"))
        same(comm.all_gather(there, axis=1), world.all_gather(mine, axis=1))
        bias = np.ones(3, np.float32)
        same(
            comm.all_reduce_nodes(there[None], bias=backend.to_device(bias)),
            world.all_reduce_nodes(mine[None], bias=bias),
        )
        same(
            comm.reduce_scatter_nodes(there[None], axis=1),
            world.reduce_scatter_nodes(mine[None], axis=1),
        )
        for n in (0, 1, 5):
            compare(world, comm, n)
        bounds = [4 * r // world.size for r in range(world.size + 1)]
        same(
            comm.reduce_scatter(there, bounds=bounds, blocking=False).wait(),
            world.reduce_scatter(mine, bounds=bounds),
        )
        even = list(range(world.size + 1))
        rows = there[: world.size]
        same(comm.all_to_all(rows, even, even), world.all_to_all(mine[: world.size], even, even))
        copy = backend.copied(there)
        same(comm.broadcast(copy, 1), values[1])
        work = comm.send(there, (world.rank + 1) % world.size, blocking=False)
        before = (world.rank - 1) % world.size
        same(comm.recv(comm.empty((4, 3)), before), values[before])
        work.wait()
        assert comm.all_reduce(np.ones(3, np.int64)).tolist() == [world.size] * 3
        mixed: tuple[tuple[dict[str, Any], str], ...] = (
            ({"out": mine}, "x lies on the device, out in host memory"),
            ({"residual": mine}, "residual and norm must lie where the result does"),
            ({"norm": Norm(bias)}, "residual and norm must lie where the result does"),
        )
        for options, message in mixed:
            try:
                comm.all_reduce(there, **options)
            except ValueError as error:
                assert message in str(error)  # noqa: PT017
            else:
                raise AssertionError(f"a host's {list(options)} was taken")
        comm.barrier()


SIZES = (0, 1, 5, 40_000)


def compare(world: Communicator, comm: Communicator, n: int) -> None:
    """comm gives of device arrays of n rows what host arrays get, evenly cut or not."""
    uneven = [0, *(n * r // world.size - (n > 9) for r in range(1, world.size)), n]
    even = [n * r // world.size for r in range(world.size + 1)]
    given = even[world.rank + 1] - even[world.rank]
    rng = np.random.default_rng([world.rank, n])
    numbers = rng.integers(-99, 99, (n, 3))

    def same(name: str, x: Any, *more: Any, **options: Any) -> None:
        def carried(y: Any) -> Any:
            if isinstance(y, Norm):
                return Norm(*map(carried, y))
            return backend.to_device(y) if isinstance(y, np.ndarray) else y

        there = {key: carried(y) for key, y in options.items()}
        got = getattr(comm, name)(backend.to_device(x.copy()), *more, **there)
        expected = getattr(world, name)(x.copy(), *more, **options)
        pairs = [(got, expected)]
        if isinstance(expected, Normed):
            assert (got.mean is None) == (expected.mean is None)
            pairs = [(y, z) for y, z in zip(got, expected, strict=True) if z is not None]
        for y, z in pairs:
            assert backend.on_device(y)
            assert backend.to_host(y).tobytes() == z.tobytes(), (name, x.dtype, n, options)

    for dtype in (np.dtype("f4"), BFLOAT16, *map(np.dtype, ("i8", "u4", "i2"))):
        x = numbers.astype(dtype)
        same("all_reduce", x)
        same("reduce_scatter", x, bounds=uneven)
        if dtype.kind in "iu":
            same("all_reduce", x, "max")
        same("all_gather", x)
        same("all_gather", x[uneven[world.rank] : uneven[world.rank + 1]], bounds=uneven)
        same("broadcast", x, world.size - 1)
        same("all_to_all", x, even, [given * r for r in range(world.size + 1)])
    nodes = rng.standard_normal((1, n, 6)).astype(np.float32)
    bias = np.arange(6, dtype=np.float32)
    for dtype in (np.float32, BFLOAT16):
        same("all_reduce_nodes", nodes, bias=bias, dtype=dtype)
        residual = np.arange(6 * n, dtype=np.float32).reshape(n, 6).astype(dtype)
        weight = bias.astype(dtype)
        for norm in (None, Norm(bias), Norm(weight, weight, 1e-3)):
            same("all_reduce_nodes", nodes, bias=bias, residual=residual, norm=norm, dtype=dtype)
            if norm is not None:
                same("all_reduce", nodes[0].astype(dtype), norm=norm)
        same("reduce_scatter_nodes", nodes, bias=bias, dtype=dtype, axis=0, bounds=uneven)
        same("reduce_scatter_nodes", nodes, bias=bias, dtype=dtype, axis=1)


@case(ranks=(2, 3, 4))
def nccl_collectives(world: Communicator) -> None:
    with device(cpu_kernels()), over_nccl():
        backend.use("cuda")
        inner = world.split(0, world.rank)
        assert inner is not None
        comm = for_device(inner, None)
        assert isinstance(comm, Nccl)
        for n in SIZES:
            compare(world, comm, n)
        assert {"send", "recv", "bcast", "allReduce"} == set(fake_nccl.calls)
        comm._link.look()
        fake_nccl.lost = True
        try:
            backend.wait()
        except PeerFailed as error:
            assert "NCCL lost a peer" in str(error)  # noqa: PT017
            assert "NCCL_ERROR_REMOTE_ERROR" in str(error)  # noqa: PT017
        else:
            raise AssertionError("a peer was lost and nobody said so")
        finally:
            fake_nccl.lost = False
        assert fake_nccl.calls[-1] == "abort"
        comm.close()


@case(ranks=(2, 3, 4))
def collectives_of_a_cuda_aware_mpi(world: Communicator) -> None:
    """MPI is given the addresses of what here is no device; that it is CUDA-aware is made up."""
    with device(cpu_kernels()):
        backend.use("cuda")
        inner = world.split(0, world.rank)
        assert inner is not None
        assert aware_mpi.direct(inner) is None, "this MPI is not CUDA-aware"
        refusal, aware_mpi.refusal = aware_mpi.refusal, lambda: None
        try:
            comm = aware_mpi.direct(inner)
            assert comm is not None
        finally:
            aware_mpi.refusal = refusal
        for n in SIZES:
            compare(world, comm, n)
        half = comm.split(comm.rank % 2, comm.rank)
        assert half is not None
        ones = backend.to_device(np.ones(5, np.float32))
        assert backend.to_host(half.all_reduce(ones)).tolist() == [half.size] * 5
        half.close()
        comm.close()


@contextmanager
def over_nccl() -> Iterator[None]:
    """And a GPU for each rank."""
    before, sys.modules["cupy.cuda.nccl"] = sys.modules["cupy.cuda.nccl"], fake_nccl
    rank, device_before = MPI.COMM_WORLD.rank, fake_cupy.devices[0]
    fake_cupy.devices[0] = f"0000:{rank:02x}:00.0", bytes([rank + 1]) * 16
    fake_nccl.calls.clear()
    try:
        yield
    finally:
        sys.modules["cupy.cuda.nccl"] = before
        fake_cupy.devices[0] = device_before


@case(ranks=2)
def one_rank_without_a_device(world: Communicator) -> None:
    """ "cuda" is refused on every rank, "auto" takes the CPU on all: both say who has none."""
    from plait.errors import UserError
    from plait.train.device import take_backend

    def look(wanted: Any) -> str:
        try:
            return take_backend(wanted, world)
        except UserError as error:
            return f"refused: {error}"

    if world.rank == 0:
        with device(cpu_kernels()):
            said = [look("cuda"), look("auto")]
    else:
        said = [look("cuda"), look("auto")]
    assert said[0].startswith("refused: rank 1 on host ")
    assert "built for the CPU only" in said[0]
    assert said[1].startswith("cpu, not cuda: rank 1 on host ")
    assert backend.name() == "cpu"


@case(ranks=3)
def devices_are_known_by_their_identity(world: Communicator) -> None:
    """Every rank sees one device: ranks 0 and 2 the same, or each its own."""
    from plait.train.device import Shares, device_shares, take_backend

    before = fake_cupy.devices
    try:
        for own, expected in (
            (world.rank % 2, Shares(2, 1 << 29)),
            (world.rank, Shares(1, 1 << 30)),
            (0, Shares(3, (1 << 30) // 3)),
        ):
            fake_cupy.devices = [(f"0000:{own}1:00.0", bytes([own] * 16))]
            with device(cpu_kernels()):
                assert take_backend("cuda", world).endswith("device 0)")
                assert device_shares(world) == expected
    finally:
        fake_cupy.devices = before
