"""Training over device memory that the ranks map from each other: the bits of one rank, also as a
CUDA graph."""

from __future__ import annotations

import contextlib
import gc
import warnings
from typing import Any

import numpy as np
from devices import REAL, SHARED, fake_cupy, gpus, peers, same
from harness import case

import plait
from plait import backend, models, optim, train
from plait.backend.recorder import Recorder
from plait.comm import Communicator
from plait.comm.alone import Alone
from plait.comm.peer import Peer
from plait.data import synthetic
from plait.train.digest import state_digest
from plait.train.run import transport_text


def digest(comm: Communicator, layout: tuple[int, int, int], wanted: Any, **changes: Any) -> str:
    layers = models.gpt(
        layers=2, hidden_dim=24, heads=4, vocabulary=50, sequence_length=12,
        dropout=changes.pop("dropout", 0.1),
    )  # fmt: skip
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
        ((1, 2, 1), {"dropout": 0.0}),
    ],
    (4, True): [((2, 2, 1), {"zero": 1, "dropout": 0.0}), ((1, 2, 2), {})],
    (4, False): [((2, 2, 1), {"sequence_parallel": True}), ((4, 1, 1), {})],
}


@case(ranks=(2, 4), cuda=True)
def training_has_the_bits_of_one_rank(world: Communicator) -> None:
    expected: dict[tuple[str, float], str] = {}
    for precision, dropout in (("bfloat16", 0.1), ("float32", 0.1), ("bfloat16", 0.0)):
        with gpus(world, True) if REAL else contextlib.nullcontext():
            expected[precision, dropout] = digest(
                Alone(), (1, 1, 1), "cuda" if REAL else "cpu", precision=precision, dropout=dropout
            )
    for shared in SHARED:
        with gpus(world, shared):
            for layout, changes in TRAININGS[world.size, shared]:
                found = digest(world, layout, "cuda", **changes)
                setting = changes.get("precision", "bfloat16"), changes.get("dropout", 0.1)
                assert found == expected[setting], (layout, changes, shared)


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
def a_recording_that_fails_keeps_no_memory(world: Communicator) -> None:
    """It says why, once; the work then runs op by op, and what it drops is free again."""
    if REAL:
        return
    with gpus(world, False), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        comm = peers(world)
        fake_cupy.Stream().use()
        recorder = backend.recorder()
        assert recorder is not None
        arena, ones = comm.memory.arena, np.ones(3000, np.float32)
        first = comm.empty(5)

        def work(x: Any) -> Any:
            out = comm.empty(x.shape)
            comm.all_reduce(x, out=out)
            if Recorder.recording:
                raise RuntimeError("this cannot be recorded")
            return out

        before = arena.used
        for number in range(5):
            found = recorder.run("", [ones], work, lambda: True)
            assert not recorder.recorded
            same(found, ones * 2)
            del found
            gc.collect()
            assert arena.used == before, (number, arena.used - before)
        assert ["this cannot be recorded" in str(each.message) for each in said] == [True]
        assert not Recorder.recording
        fake_cupy.Stream.null.use()
        del first
        comm.close()


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
