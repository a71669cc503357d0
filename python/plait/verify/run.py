"""Trains the same steps at one layout after the other, each on as many ranks as it needs."""

from __future__ import annotations

import dataclasses
import gc
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from plait.comm import Communicator
from plait.comm.tree import Leaves
from plait.data import Dataset
from plait.errors import UserError
from plait.mesh import Mesh, world_communicator
from plait.nn import LayerSpec
from plait.report import Screen
from plait.train import numerics, setup
from plait.train.build import build_dataset, build_model, make_trainer
from plait.train.config import Config
from plait.train.digest import state_digest
from plait.train.engine import Engine, StepResult
from plait.train.results import NotFinite, Step
from plait.verify.compare import Difference, first_difference, ranks_text
from plait.verify.distance import Catcher, distances
from plait.verify.key import STATE
from plait.verify.listener import Listener
from plait.verify.trace import RankTrace, Tracer

_ROW = "{:<9} {:>5}  {:<12} {:>8}  {:>12}  {:<12}  {}"


@dataclass(frozen=True)
class Subject:
    """What is trained at every layout."""

    world: Communicator
    specs: list[LayerSpec]
    dataset: Dataset


@dataclass(frozen=True)
class Trained:
    """Some steps at one layout. found: what each rank's listener found, on rank 0; seconds: a step,
    listening included; fault: why it ended early."""

    found: list[Any]
    transport: str
    seconds: float
    loss: float
    digest: str
    fault: str


def verify(configs: Sequence[Config], steps: int, file: TextIO | None = None) -> bool:
    """Whether `steps` steps have the same bits at every config's layout; prints a table, and for a
    layout with other bits than the first one where they part. Collective over the world, which is
    as large as the largest layout or larger.

    UserError for what `plait train` refuses at one of the layouts, before anything is trained."""
    world = world_communicator()
    screen = Screen(active=world.rank == 0, file=file or sys.stdout)
    configs = [_resolved(config, world.size) for config in configs]
    subject = _prepare(configs, world)
    steps = min(steps, configs[0].train.steps)
    screen.say(_ROW.format("layout", "ranks", "transport", "s/step", "loss", "weights", "result"))
    reference: list[RankTrace] = []
    same = True
    for index, config in enumerate(configs):
        trained = _train(subject, config, steps, lambda engine: Tracer(engine, _host()))
        traces = trained.found if trained else []
        if index == 0:
            reference, word, found = traces, "is what the others are compared with", None
        else:
            found = first_difference(reference, traces) if world.rank == 0 else None
            word = "the same bits" if found is None else "OTHER BITS"
        found = world.broadcast_object(found)
        if trained is not None:
            screen.say(_row(config, trained, word))
            if trained.fault:
                screen.say(f"  {trained.fault}")
        if found is not None:
            same = False
            _explain(subject, configs[0], config, found, screen)
    return same


def _resolved(config: Config, ranks: int) -> Config:
    """With layout.data filled in."""
    layout = config.layout
    layout = layout.resolve(layout.ranks or ranks)
    return dataclasses.replace(config, layout=layout)


def _prepare(configs: Sequence[Config], world: Communicator) -> Subject:
    first = configs[0]
    with setup.users_fault():
        if first.numerics.grains == "layout":
            raise UserError(
                'numerics.grains = "layout" gives every layout bits of its own: there is nothing '
                "to compare. Give numerics.grains=auto"
            )
        here = setup.ranks_here(world)
        setup.set_threads(first, here)
        numerics.agree_on_instructions(world)
        dataset = build_dataset(first)
        dataset.prepare(world)
        specs = build_model(first, dataset)
        for config in configs:
            grains = setup.grains_of(config, specs, config.layout)
            setup.check_grains(specs, config.layout, grains, config.train.batch)
            setup.check_memory(config, specs, config.layout, here)
        if any(spec.mixes_samples for spec in specs):
            _check_microbatches(configs, specs)
    return Subject(world, specs, dataset)


def _check_microbatches(configs: Sequence[Config], specs: list[LayerSpec]) -> None:
    """With batch norm they are part of the numerics."""
    found = []
    for config in configs:
        train, layout = config.train, config.layout
        leaves = Leaves.even(setup.grains_of(config, specs, layout)[0], layout.data or 1)
        found.append((numerics.microbatches(train.batch, leaves, train.microbatch), layout))
    for cut, layout in found:
        if cut != found[0][0]:
            raise UserError(
                f"batch norm takes its statistics over a microbatch, and train.microbatch = "
                f"{configs[0].train.microbatch} cuts the batch into {cut} at {layout}, but into "
                f"{found[0][0]} at {found[0][1]}: leave train.microbatch out, or give layouts "
                "that cut it alike"
            )


def _train(
    subject: Subject, config: Config, steps: int, listen: Callable[[Engine], Listener]
) -> Trained | None:
    """On the first ranks of the world; None on the others."""
    gc.collect()  # the last layout's engine: it and its listener know each other
    world, layout = subject.world, config.layout
    comm = world.split(0 if world.rank < (layout.ranks or 1) else None, world.rank)
    if comm is None:
        return None
    mesh = Mesh(layout.data or 1, layout.tensor, layout.pipeline, comm=comm)
    unchecked = dataclasses.replace(config.numerics, check_every=0)  # this is what is looked for
    config = dataclasses.replace(config, numerics=unchecked)
    with setup.users_fault():
        trainer = make_trainer(config, subject.specs, subject.dataset, mesh, None)
    listener = listen(trainer.engine)
    fault, loss, begin = "", float("nan"), time.perf_counter()
    training = trainer.steps(config.train.steps)
    for _ in range(steps):
        try:
            result: Step | StepResult = next(training)
        except NotFinite as error:
            fault, result = str(error), error.result
        loss = result.loss
        listener.result(loss=loss, grad_norm=result.grad_norm)
        if any(mesh.world.all_gather_object(fault)):  # of one rank alone if that is what is wrong
            break
    else:
        listener.state()
    seconds = (time.perf_counter() - begin) / max(steps, 1)
    digest, transport = state_digest(trainer.engine), mesh.world.transport
    found = mesh.world.gather_object(listener.found)
    mesh.close()
    if comm is not world:
        comm.close()
    return Trained(found or [], transport, seconds, loss, digest, fault)


def _row(config: Config, trained: Trained, word: str) -> str:
    layout = config.layout
    return _ROW.format(
        str(layout), layout.ranks or 1, trained.transport, f"{trained.seconds:.2f}",
        f"{trained.loss:.6f}", trained.digest[:12], word,
    )  # fmt: skip


def _explain(
    subject: Subject, first: Config, config: Config, found: Difference, screen: Screen
) -> None:
    """Trains at both layouts once more up to the difference, and says how far apart they are."""
    key = found.key
    sample = f", sample {found.sample}" if found.sample >= 0 else ""
    note = f"; {found.note}" if found.note else ""
    screen.say(f"  {config.layout} parts from {first.layout} {key.when}: {key.what}{sample}{note}")
    if found.alone:
        return
    steps = key.step if key.phase == STATE else key.step + 1
    reference, other = (
        _train(subject, each, steps, lambda engine: Catcher(engine, _host(), found))
        for each in (first, config)
    )
    if reference is None or other is None or subject.world.rank != 0:
        return
    lines = distances(reference.found, other.found)
    if not lines:
        lines = [
            "the second time both have the same bits, so this comes and goes: look for a race, or "
            f"for broken memory, at {ranks_text(found.suspects)}"
        ]
    for line in lines:
        screen.say(f"    {line}")


def _host() -> str:
    return socket.gethostname()
