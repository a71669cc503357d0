"""The same training run in other ways: layouts, microbatches, schedules, transports, stops. None of
them may change its bits, which one rank tells."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engines import factorisations, one_rank
from trainings import GRAINS, Bits, Training
from transports import transports

from plait.backend import kernels
from plait.comm import Communicator
from plait.mesh import Mesh
from plait.optim import AdamW
from plait.train import trainer
from plait.train.digest import state_digest
from plait.train.engine import Engine
from plait.train.trainer import Trainer

SMALL_BUCKET = 1 << 13  # elements, so that many reductions are under way at once
STOPS = ("never", "one rank", "other layout")


@dataclass(frozen=True)
class How:
    """microbatch None: as plait takes it by itself. stop: who ran the first half of the steps, if
    not this layout itself."""

    layout: tuple[int, int, int]
    microbatch: int | None = None
    schedule: str = "one_f_one_b"
    recompute: str = "none"
    zero: int = 0
    sequence_parallel: bool = False
    threads: int = 1
    transport: str = "mpi"
    stop: str = "never"

    @property
    def other(self) -> How:
        """What runs the first half where that is another layout."""
        return replace(self, layout=next_layout(self.layout), zero=1 - self.zero)

    @property
    def layers(self) -> int:
        """Of a Training that has one for each stage, in both halves."""
        halves = (self, self.other) if self.stop == "other layout" else (self,)
        return 8 if max(how.layout[2] for how in halves) > 4 else 4


def named_transports(ranks: int) -> tuple[str, ...]:
    """Of transports(). Hierarchical has 2 ranks on a node; "in turn" has 2 nodes, dealt in turn."""
    if ranks == 1:
        return ("alone", "mpi")
    return ("mpi", "node", "hierarchical", "in turn")[: 2 if ranks == 2 else 4]


class Bench:
    """Runs trainings on all ranks, and once each on rank 0 alone."""

    def __init__(self, world: Communicator):
        self.world = world
        self._alone: dict[Training, tuple[Bits, Path]] = {}
        self._mesh: tuple[tuple[Any, ...], Mesh] | None = None  # the last, and what it is of
        self._transports = dict(zip(named_transports(world.size), transports(), strict=True))

    def check(self, training: Training, how: How) -> None:
        difference = self.bits(training, how).difference(self.alone(training)[0])
        assert not difference, f"{training}, {how}: {difference} as on one rank"

    def bits(self, training: Training, how: How) -> Bits:
        """Of the whole run, what was before its stop included."""
        half, path = training.steps // 2, None
        first: list[tuple[str, str]] = []
        if how.stop == "one rank":
            bits, path = self.alone(training)
            first = list(bits.steps[:half])
        elif how.stop == "other layout":
            with self._trainer(training, how.other, shared_folder(self.world)) as one:
                first = run(one, half)
                path = one.save()
        with self._trainer(training, how) as one:
            if path is not None:
                one.load(path)
            found = Bits((*first, *run(one, training.steps)), state_digest(one.engine))
        if how.stop == "other layout" and self.world.rank == 0:
            assert path is not None
            shutil.rmtree(path.parents[1])
        return found

    def alone(self, training: Training) -> tuple[Bits, Path]:
        """One rank's bits, and its checkpoint after half of the steps."""
        if training not in self._alone:
            found = None
            if self.world.rank == 0:
                mesh = one_rank({"data": GRAINS[0], "tensor": GRAINS[1]})
                folder = Path(tempfile.mkdtemp(prefix="plait-alone-"))
                with make_trainer(training, How((1, 1, 1)), mesh, folder) as one:
                    first = run(one, training.steps // 2)
                    path = one.save()
                    rest = run(one, training.steps)
                    found = Bits((*first, *rest), state_digest(one.engine)), path
            self._alone[training] = self.world.broadcast_object(found)
        return self._alone[training]

    def mesh(self, how: How) -> Mesh:
        key = (how.layout, how.transport)
        if self._mesh is None or self._mesh[0] != key:
            if self._mesh is not None:
                self._mesh[1].close()
            self._mesh = key, Mesh(*how.layout, comm=self._transports[how.transport])
        return self._mesh[1]

    @contextmanager
    def _trainer(self, training: Training, how: How, run: Path | None = None) -> Iterator[Trainer]:
        kernels.set_threads(how.threads)
        trainer.Engine = partial(Engine, bucket_size=SMALL_BUCKET)  # type: ignore[misc]
        try:
            with make_trainer(training, how, self.mesh(how), run) as made:
                yield made
        finally:
            trainer.Engine = Engine  # type: ignore[misc]
            kernels.set_threads(1)


def make_trainer(training: Training, how: How, mesh: Mesh, run: Path | None) -> Trainer:
    return Trainer(
        training.specs, training.samples, mesh=mesh, run=run, grains=GRAINS, seed=5, check_every=7,
        optimizer=AdamW(learning_rate=3e-3, weight_decay=0.1), clip=0.5, batch=training.batch,
        precision=training.precision, microbatch=how.microbatch, zero=how.zero,
        recompute=how.recompute, pipeline_schedule=how.schedule,
        sequence_parallel=how.sequence_parallel,
    )  # fmt: skip


def run(one: Trainer, steps: int) -> list[tuple[str, str]]:
    return [(step.loss.hex(), step.grad_norm.hex()) for step in one.steps(steps)]


def next_layout(layout: tuple[int, int, int]) -> tuple[int, int, int]:
    """Another one for as many ranks, if there is one."""
    every = factorisations(layout[0] * layout[1] * layout[2])
    return every[(every.index(layout) + 1) % len(every)]


def shared_folder(world: Communicator) -> Path:
    made = tempfile.mkdtemp(prefix="plait-bench-") if world.rank == 0 else None
    return Path(world.broadcast_object(made))
