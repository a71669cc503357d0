"""What the command line calls: train, evaluate, generate."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plait import __version__
from plait.backend import name as name_of_backend
from plait.backend.host import kernels
from plait.comm import Communicator
from plait.comm.alone import Alone
from plait.data import Dataset, synthetic
from plait.data.text_set import Text
from plait.errors import UserError
from plait.mesh import Mesh, world_communicator
from plait.report import Progress, RunFolder, Screen, bytes_text, count_text, peak_bytes, time_text
from plait.train import sections
from plait.train.build import build_dataset, build_model, make_trainer, sequence_length
from plait.train.checks import check_layout
from plait.train.config import Config, compare, dump, load, load_record
from plait.train.device import device_shares, take_backend
from plait.train.numerics import agree_on_instructions
from plait.train.restore import TOKENIZER, check_data, find_run, read_tokenizer, restored
from plait.train.results import Evaluation
from plait.train.setup import (
    check_grains,
    check_memory,
    grains_of,
    ranks_here,
    set_threads,
    users_fault,
)
from plait.train.trainer import Trainer, resume_point

DONE, STOPPED = 0, 75


def train(
    config: Config,
    *,
    fresh: bool,
    other_bits: bool = False,
    stop: Callable[[], bool] | None = None,
) -> int:
    """Trains as the config says, or goes on where its run folder stopped. Exit code 0 or 75."""
    with users_fault():
        world = world_communicator()
        screen = Screen(active=world.rank == 0)
        layout = config.layout.resolve(world.size)
        check_layout(config, world.size)
        run = RunFolder(Path(config.runs_dir) / config.name, world, fresh=fresh)
        run.look()
        previous = _check_resumable(config, run)
        local = ranks_here(world)
        threads, path = set_threads(config, local), agree_on_instructions(world)
        engine = take_backend(config.backend, world)
        shares = device_shares(world)
        dataset = build_dataset(config)
        dataset.prepare(world)
        check_data(run.path, previous, dataset)
        specs = build_model(config, dataset)
        grains = grains_of(config, specs, layout)
        check_grains(specs, layout, grains, config.train.batch)
        needed, _ = check_memory(config, specs, layout, local, shares.bytes)
        mesh = Mesh(layout.data or 1, layout.tensor, layout.pipeline, comm=world)
        record = {
            "plait": __version__,
            "instructions": path,
            "data": dataset.fingerprint,
            "mpi": mpi_name(world),
        }
        agreed = replace(config, backend=name_of_backend())
        trainer = make_trainer(
            agreed, specs, dataset, mesh, run, record, other_bits
        )  # opens the folder
        run.write(run.config_path.name, dump(config, {**record, "bits": trainer.bits}))
        if isinstance(dataset, Text):
            run.write(TOKENIZER, dataset.tokenizer.json)
    if trainer.next_step >= config.train.steps:
        screen.say(f"{run.path} has finished: step {trainer.next_step} of {config.train.steps}")
        last = trainer.next_step == config.train.steps
        if last and not run.holds(trainer.next_step - 1, "validation_loss"):
            _evaluate_last(config, trainer, run, screen)  # a kill came before
        return DONE
    screen.header(
        {
            "run": run.path,
            "layout": f"{mesh.layout} (data x tensor x pipeline) on {world.size} ranks",
            "mpi": f"{mpi_name(world)}, transport {transport_text(world, trainer.mesh)}",
            "engine": f"{engine}{shares}, {path}, {threads} thread{'s' * (threads > 1)} a rank",
            "model": f"{count_text(sum(spec.parameters for spec in specs))} parameters, "
            f"{config.train.precision}, grains {grains[0]} x {grains[1]}",
            "batch": f"{config.train.batch} samples a step, {trainer.engine.share.largest} at once",
            "data": f"{dataset.samples} samples, {count_text(_epochs(config, dataset))} epochs",
            "memory": f"{bytes_text(needed)} a rank planned",
        }
    )
    run.event("start", step=trainer.next_step, layout=str(mesh.layout), ranks=world.size)
    try:
        return _steps(config, trainer, run, screen, stop, needed)
    except Exception as error:
        run.fault(f"{type(error).__name__}: {error}", step=trainer.next_step)
        raise


def _steps(
    config: Config,
    trainer: Trainer,
    run: RunFolder,
    screen: Screen,
    stop: Callable[[], bool] | None,
    needed: int,
) -> int:
    total, begin = config.train.steps, time.monotonic()
    saved = None
    unit = "tokens/s" if trainer.dataset.kind == "tokens" else "samples/s"
    with Progress(screen, total, done=trainer.next_step, unit=unit) as progress:
        held_out, every = trainer.held_out, config.evaluate.every
        for step in trainer.steps(total, stop=stop):
            done = step.index + 1
            progress.step(done, loss=step.loss, rate=step.rate, memory_bytes=step.memory_bytes)
            if held_out is not None and every and done % every == 0 and done < total:
                found = trainer.evaluate(batches=config.evaluate.batches)
                run.metrics({"step": step.index, **validation_row(found)})
                progress.note(f"step {done}: {validation_text(found)}")
            if config.checkpoint.every and done % config.checkpoint.every == 0:
                saved = trainer.save()
    if saved is None or not saved.name.endswith(f"{trainer.next_step:08d}"):
        saved = trainer.save()
    if trainer.next_step < total:
        run.event("stop", step=trainer.next_step)
        screen.say(
            f"stopped at step {trainer.next_step} of {total}; {saved} is written. The same command "
            "goes on from there"
        )
        return STOPPED
    _evaluate_last(config, trainer, run, screen)
    run.event("stop", step=total)
    peak = np.array([peak_bytes()], np.int64)
    peak = trainer.mesh.world.all_reduce(peak, op="max")
    pool = kernels.memory_use()
    if copies := copies_text(trainer.mesh):
        screen.say(copies)
    screen.say(
        f"memory: at most {bytes_text(int(peak[0]))} a rank, {bytes_text(needed)} planned; "
        f"{bytes_text(pool['reserved'])} pooled and {bytes_text(pool['shared'])} shared here, made "
        f"present in {pool['prefault_seconds']:.2f} s"
    )
    screen.say(f"trained {total} steps in {time_text(time.monotonic() - begin)}; {saved}")
    return DONE


def transport_text(world: Communicator, mesh: Mesh) -> str:
    """What moves arrays between the ranks: on the hosts, and along the mesh axes on devices."""
    axes = {name: getattr(mesh, name) for name in ("data", "tensor", "pipeline")}
    told = [f"{name} {comm.transport}" for name, comm in axes.items() if comm.size > 1]
    return ", ".join([world.transport, *(told if name_of_backend() == "cuda" else ())])


def copies_text(mesh: Mesh) -> str:
    """What rank 0's collectives copied, because it lay where no peer can read it; "" if nothing."""
    axes = (mesh.data, mesh.tensor, mesh.pipeline)
    count, size = (sum(comm.outside[i] for comm in axes) for i in (0, 1))
    if not count:
        return ""
    return (
        f"peer memory: {count_text(count)} arrays of collectives, {bytes_text(size)}, were not in "
        "shared memory and were copied on their way"
    )


def _evaluate_last(config: Config, trainer: Trainer, run: RunFolder, screen: Screen) -> None:
    """The evaluation after the last step, where there is held-out data."""
    if trainer.held_out is None:
        return
    found = trainer.evaluate(batches=config.evaluate.batches)
    run.metrics({"step": trainer.next_step - 1, **validation_row(found)})
    screen.say(f"held out: {validation_text(found)}")


def evaluate(path: Path) -> Evaluation:
    """Evaluates a run, or one of its checkpoints, on all of its held-out data and prints it."""
    world = world_communicator()
    screen = Screen(active=world.rank == 0, file=sys.stdout)
    with users_fault():
        saved = find_run(path, world)
        dataset = build_dataset(saved.config)
        dataset.prepare(world)
        check_data(saved.folder, saved.record, dataset)
        trainer = restored(saved, dataset, world)
    if trainer.held_out is None:
        raise UserError(f"{path}: its data has no held-out samples to evaluate on")
    found = trainer.evaluate()
    screen.say(f"{path} at step {trainer.next_step}, {found.samples} held-out samples")
    screen.say(validation_text(found))
    if isinstance(dataset, Text):
        trigram = dataset.trigram_bits_per_byte
        if math.isfinite(trigram):
            screen.say(f"a byte-trigram model of the same text: {trigram:.3f} bits per byte")
    return found


def generate(path: Path, prompt: str, tokens: int, temperature: float, seed: int) -> str:
    """Goes on from `prompt` with a run, or one of its checkpoints, on this rank alone; prints it.

    Needs the run's folder and none of its data."""
    with users_fault():
        saved = find_run(path, Alone())
        text = saved.config.data
        if not isinstance(text, sections.Text):
            raise UserError(f"{path} was not trained on text: there is nothing to generate")
        tokenizer = read_tokenizer(saved.folder)
        window = sequence_length(saved.config)
        # stands in for the text: a model follows only its vocabulary and length
        shape = synthetic(samples=1, vocabulary=text.vocabulary, sequence_length=window)
        trainer = restored(saved, shape, Alone())
    ids = [int(token) for token in tokenizer.encode(prompt)] or [0]
    start = len(ids) if prompt else 0
    random = np.random.default_rng(seed)
    for _ in range(tokens):
        logits = trainer.next_logits(np.array([ids[-window:]], np.int32))
        ids.append(sample(logits, temperature, random))
        if ids[-1] == 0:  # end of text
            break
    written = prompt + tokenizer.decode([token for token in ids[start:] if token])
    sys.stdout.write(written + "\n")
    return written


def sample(logits: Any, temperature: float, random: np.random.Generator) -> int:
    """A token drawn from softmax(logits / temperature); the likeliest at temperature 0."""
    if temperature == 0.0:
        return int(np.argmax(logits))
    scaled = np.asarray(logits, np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return int(random.choice(len(weights), p=weights / weights.sum()))


def _check_resumable(config: Config, run: RunFolder) -> dict[str, Any]:
    """Refuses a folder that holds a run of another model or optimizer. Collective. Returns the
    record of the run that is resumed, {} if there is none."""

    def found() -> tuple[list[str], dict[str, Any]]:  # one rank's view of the files
        if run.previous_config is None or resume_point(run.checkpoints)[0] is None:
            return [], {}
        return compare(load(run.config_path), config), load_record(run.config_path)

    differing, record = run.on_rank_0(found)
    if differing:
        raise UserError(
            f"{run.path} holds a run with another {', '.join(differing)}: give this one another "
            "name, or start it afresh with --fresh (the old folder is moved aside)"
        )
    return record


def validation_row(found: Evaluation) -> dict[str, Any]:
    row = {"validation_loss": found.loss, "validation_accuracy": found.accuracy}
    if found.bits_per_byte is not None:
        row["validation_bits_per_byte"] = found.bits_per_byte
    return row


def validation_text(found: Evaluation) -> str:
    text = f"loss {found.loss:.4f}, accuracy {found.accuracy:.4f}"
    if found.bits_per_byte is not None:
        text += f", {found.bits_per_byte:.3f} bits per byte"
    return text


def mpi_name(world: Communicator) -> str:
    """The MPI library in use, in a few words."""
    if world.transport == "alone":
        return "none"
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().split()[:3]).rstrip(",")


def _epochs(config: Config, dataset: Dataset) -> float:
    return config.train.steps * config.train.batch / max(dataset.samples, 1)
