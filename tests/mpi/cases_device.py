"""Training on a device's arrays over several ranks, through host memory: the bits of one CPU rank.

The device is a stand-in (tests/fibers/fake_cupy.py) with the CPU's kernels, so what can differ is
where arrays go.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from harness import case

import plait
from plait import backend, models, optim, train
from plait.comm import Communicator
from plait.comm.alone import Alone
from plait.comm.staged import Staged
from plait.data import synthetic
from plait.train.digest import state_digest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fibers"))
import fake_cupy
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
        try:
            comm.all_reduce(there, out=mine)
        except ValueError as error:
            assert "x lies on the device, out in host memory" in str(error)  # noqa: PT017
        else:
            raise AssertionError("a host's out was taken")
        comm.barrier()


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
