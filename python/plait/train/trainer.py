"""The Trainer: a model, a data set, a mesh; steps that resume, are recorded, and can be saved."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plait import checkpoint
from plait.backend import Array, host, memory_bytes
from plait.backend import name as name_of_backend
from plait.comm.transport import PeerFailed
from plait.comm.work import communication_seconds
from plait.data import Dataset, Sampler
from plait.errors import UserError
from plait.mesh import Mesh
from plait.nn import LayerSpec
from plait.ops.position import Position
from plait.optim import Optimizer, Schedule, constant
from plait.parallel.bucket import Span
from plait.report import RunFolder, Screen, peak_bytes, reset_peak
from plait.train import fit
from plait.train.batches import Batches
from plait.train.device import Wanted, shared_room, take_backend
from plait.train.engine import LIMBS, Engine, Settings
from plait.train.grains import auto_grains
from plait.train.microbatch import auto_microbatch
from plait.train.numerics import agree_on_instructions, changes, identity
from plait.train.replicas import ReplicasDiffer, check_replicas
from plait.train.results import Evaluation, NotFinite, Step
from plait.train.state_check import StateChanged, StateCheck


class Trainer:
    """Trains `layers` on `dataset` over `mesh`.

    batch: samples a step over all replicas; microbatch: samples a replica passes at once (left
    out: as auto_microbatch says). grains: the leaves of canonical sums, "auto" (a function of the
    model and the batch), "layout", or (data, tensor). check_every: steps between comparisons of the
    replicas' bits (check_replicas), also made before each checkpoint; each step, that part of the
    state is looked at for changes between updates (StateCheck, not on a GPU); 0: never. backend:
    taken for the whole process (take_backend). run: a folder, made
    or taken over once all else has been accepted; a checkpoint in it is resumed from, which is
    refused where that would change the bits (numerics.identity) unless other_bits. It is this
    Trainer's alone until close(), or the end of a `with` block.
    """

    def __init__(
        self,
        layers: list[LayerSpec],
        dataset: Dataset,
        *,
        mesh: Mesh,
        optimizer: Optimizer,
        schedule: Schedule | None = None,
        clip: float | None = None,
        batch: int,
        microbatch: int | None = None,
        precision: Literal["bfloat16", "float32"] = "bfloat16",
        zero: int = 0,
        seed: int = 0,
        recompute: Literal["none", "layer"] = "none",
        pipeline_schedule: Literal["one_f_one_b", "gpipe"] = "one_f_one_b",
        sequence_parallel: bool = False,
        grains: Literal["auto", "layout"] | tuple[int, int] = "auto",
        check_every: int = 100,
        backend: Wanted = "auto",
        run: str | Path | RunFolder | None = None,
        keep: int = 3,
        metadata: dict[str, Any] | None = None,
        other_bits: bool = False,
    ):
        _check_types(layers, dataset, mesh, optimizer, batch)
        if grains == "auto":
            grains = auto_grains(layers, batch)
        elif grains == "layout":
            grains = (mesh.data.size, mesh.tensor.size)
        elif not _is_pair(grains):
            raise ValueError(f'grains must be "auto", "layout" or (data, tensor), got {grains!r}')
        layout = mesh.layout
        plan = fit.Plan(layout.data, layout.tensor, layout.pipeline, batch, grains)
        units = [(spec.name, spec.tensor_units) for spec in layers if spec.tensor_units]
        fit.check(plan, units, fit.arguments)
        self.mesh = mesh = mesh.with_grains(*grains)
        taken = take_backend(backend, mesh.world)
        if "not cuda" in taken and mesh.world.rank == 0:
            warnings.warn(f"backend {taken}", stacklevel=2)
        self.optimizer, self.schedule = optimizer, schedule or constant()
        dataset.prepare(mesh.world)
        self.dataset = dataset
        agree_on_instructions(mesh.world)
        settings = Settings(
            batch=batch,
            microbatch=auto_microbatch(layers, batch, mesh.data.size, mesh.pipeline.size)
            if microbatch is None
            else microbatch,
            precision=precision,
            zero=zero,
            seed=seed,
            clip=clip,
            recompute=recompute,
            schedule=pipeline_schedule,
            sequence_parallel=sequence_parallel,
        )
        if dataset.samples < 1:
            raise ValueError("the data set has no samples")
        self.settings = settings
        if name_of_backend() == "cuda":
            self.mesh = mesh = mesh.for_device(shared_room(layers, layout, settings, grains[0]))
        self.sampler = Sampler(dataset.samples, batch, seed)
        reset_peak()
        self.engine = Engine(layers, mesh, optimizer, settings)
        self.batches = Batches(dataset, self.sampler, self.engine.share)
        self.keep, self.metadata, self.check_every = keep, metadata or {}, check_every
        if check_every and name_of_backend() == "cpu":
            StateCheck(self.engine, check_every)
        self.next_step, self.other_bits = 0, other_bits
        self.bits = identity(mesh, layers, batch, settings.microbatch, settings.precision)
        self.run = RunFolder(Path(run), mesh.world) if isinstance(run, str | Path) else run
        if self.run is not None:
            if not self.run.is_open:
                self.run.open()
            try:
                self._resume(self.run)
            except BaseException:
                self.run.close()
                raise

    def close(self) -> None:
        """Gives the run folder back: another Trainer, or another job, may take it over. Nothing of
        the data set is being read any more."""
        self.batches.settle()
        if self.run is not None:
            self.run.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- training ---

    def steps(self, steps: int, *, stop: Callable[[], bool] | None = None) -> Iterator[Step]:
        """Trains up to step `steps` of the run (not that many more), yielding each step's result.

        stop() is asked after each step; once it is true on any rank, all ranks stop there.
        UserError if the loss or the gradient is not finite."""
        while self.next_step < steps:
            step = self._step(self.next_step, steps)
            self.next_step += 1
            if self.run is not None:
                self.run.metrics(step.row())
            if self.check_every and self.next_step % self.check_every == 0:
                self._check_replicas()
            yield step
            if stop is not None and self._agree(stop()):
                return

    def _step(self, index: int, steps: int) -> Step:
        begin, communicated = time.perf_counter(), communication_seconds()
        inputs, targets = self.batches.take(index, last=index + 1 >= steps)
        rate = np.array([self.optimizer.learning_rate * self.schedule.factor(index, steps)])
        self.mesh.world.broadcast(rate)  # libm's cosine is not the same everywhere
        try:
            result = self.engine.step(index, float(np.float32(rate[0])), inputs, targets)
        except PeerFailed as error:
            raise PeerFailed(f"in step {index + 1}: {error}") from None
        except StateChanged as error:  # on this rank alone
            newest = None if self.run is None else checkpoint.latest(self.run.checkpoints)
            raise StateChanged(f"in step {index + 1}: {error}; {_rest(newest)}") from None
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            raise NotFinite(
                f"step {index + 1} of {steps}: loss {result.loss}, gradient norm "
                f"{result.grad_norm}; no weight was changed. Lower optimizer.learning_rate, set "
                "optimizer.clip, or look for NaN in the data",
                result,
            )
        seconds = time.perf_counter() - begin
        unit: Literal["tokens", "samples"] = (
            "tokens" if self.dataset.kind == "tokens" else "samples"
        )
        done = self.settings.batch * (inputs.shape[1] if unit == "tokens" else 1)
        return Step(
            index, result.loss, result.grad_norm, float(rate[0]), seconds, done / seconds, unit,
            memory_bytes() or peak_bytes(), communication_seconds() - communicated,
        )  # fmt: skip

    def _check_replicas(self) -> None:
        try:
            check_replicas(self.engine)
        except ReplicasDiffer as error:
            newest = None
            if self.run is not None and self.mesh.world.rank == 0:
                newest = checkpoint.latest(self.run.checkpoints)
            newest = self.mesh.world.broadcast_object(newest)
            raise ReplicasDiffer(f"after step {self.next_step}: {error}; {_rest(newest)}") from None

    def _agree(self, wanted: bool) -> bool:
        flag = np.array([int(wanted)], np.int64)
        return bool(self.mesh.world.all_reduce(flag, op="max")[0])

    # --- checkpoints ---

    def save(self) -> Path:
        """Writes a checkpoint of the state before step `next_step`. Needs run=."""
        if self.run is None:
            raise ValueError("this Trainer has no run folder: give it run=")
        if self.check_every:
            self._check_replicas()
        pieces = [_piece(*entry) for entry in self.engine.owned()]
        path = checkpoint.save(
            self.run.checkpoints,
            self.next_step,
            pieces,
            self.mesh.world,
            metadata={**self.metadata, "layout": str(self.mesh.layout), "bits": self.bits},
            keep=self.keep,
        )
        self.run.event("save", step=self.next_step, path=str(path))
        return path

    def _resume(self, run: RunFolder) -> None:
        path, passed_over = run.on_rank_0(lambda: resume_point(run.checkpoints))
        screen = Screen(active=self.mesh.world.rank == 0)
        for line in passed_over:
            screen.say(line)
        if path is not None:
            for line in self._check_bits(run, path):
                screen.say(line)
            self.load(path)
        dropped = run.resume(self.next_step)
        if path is not None:
            screen.say(f"goes on from {path}, after step {self.next_step}")
        elif dropped:
            screen.say(
                f"{run.path} has no checkpoint: it starts over, and the {dropped} rows of its "
                "metrics.jsonl are dropped"
            )
        if path is not None or dropped:
            run.event(
                "resume", step=self.next_step, layout=str(self.mesh.layout), path=path,
                passed_over=passed_over, dropped_rows=dropped,
            )  # fmt: skip

    def _check_bits(self, run: RunFolder, path: Path) -> list[str]:
        """What to say of a checkpoint that other numerics wrote. UserError unless told to go on."""
        before = run.on_rank_0(lambda: checkpoint.Reader(path).metadata.get("bits", {}))
        if not (differing := changes(before, self.bits)):
            return []
        text = f"{path} was trained with {'; '.join(differing)}: from there on the bits are others"
        if not self.other_bits:
            raise UserError(f"{text} than at one go; --other-bits (other_bits=True) goes on so")
        return [f"{text}, as --other-bits allows"]

    def load(self, path: Path) -> None:
        """Takes all state from a checkpoint written at any layout."""
        wanted, finish = self.engine.to_load()
        manifest = checkpoint.load(path, [_piece(*entry) for entry in wanted], self.mesh.world)
        finish()
        self.next_step = manifest.step

    # --- evaluation ---

    @property
    def held_out(self) -> Dataset | None:
        """The held-out part of the data set; None if there is none or it has no samples. The first
        call is collective."""
        self.batches.settle()
        part = self.dataset.held_out
        if part is not None:
            part.prepare(self.mesh.world)
        return part if part is not None and part.samples > 0 else None

    def evaluate(self, dataset: Dataset | None = None, *, batches: int | None = None) -> Evaluation:
        """Loss and accuracy over `dataset` (default: the held-out part), at most `batches` batches
        of it."""
        dataset = dataset if dataset is not None else self.held_out
        if dataset is None:
            raise ValueError("the data set has no held-out samples: give evaluate() others")
        self.batches.settle()
        dataset.prepare(self.mesh.world)
        samples = dataset.samples
        if batches is not None:
            samples = min(samples, batches * self.settings.batch)
        data, size = self.mesh.data, self.engine.share.largest
        start, stop = (samples * r // data.size for r in (data.rank, data.rank + 1))
        limbs = np.zeros((1, LIMBS), np.int64)
        counts = np.zeros(3, np.int64)  # targets, right, bytes
        for first in range(start, stop, size):
            indices = np.arange(first, min(first + size, stop), dtype=np.int64)
            inputs, targets = dataset.batch(indices)
            sequence = self.engine.sequence(inputs)
            position = Position(
                self.next_step, first, len(indices), False, self.settings.seed, (), sequence
            )
            found = self.engine.evaluate(position, inputs, targets)
            if found is None or self.mesh.tensor.rank != 0:
                continue
            losses, right = found
            for sample in losses.reshape(len(losses), -1):
                host.kernels.exact_sum(sample, False, limbs[0])
            seen = targets >= 0
            counts += [seen.sum(), (right & seen.reshape(right.shape)).sum(), 0]
            if dataset.token_bytes is not None:
                counts[2] += dataset.token_bytes[targets[seen]].sum()
        limbs = self.mesh.world.all_reduce(limbs)
        counts = self.mesh.world.all_reduce(counts)
        total = host.kernels.exact_value(limbs[0])
        targets_seen = int(counts[0])
        if targets_seen == 0:
            raise UserError("evaluation saw no target: all of the held-out targets are masked")
        per_byte = total / math.log(2) / int(counts[2]) if counts[2] else None
        return Evaluation(total / targets_seen, int(counts[1]) / targets_seen, samples, per_byte)

    def next_logits(self, tokens: Array) -> Array:
        """tokens (1, S) int32 -> float32 logits (vocabulary,) of the next token, on all ranks."""
        position = Position(self.next_step, 0, 1, False, self.settings.seed)
        found = self.engine.logits(position, tokens)
        last = None if found is None else found[0, -1]
        stages = self.mesh.pipeline.size
        result: Array = self.mesh.pipeline.broadcast_object(last, root=stages - 1)
        return result


def resume_point(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint that a run goes on from, None if it has none, and a line for each newer one
    that cannot be read. On rank 0, which has the run to itself.

    Raises CheckpointError where there are checkpoints and none can be read.
    """
    checkpoint.clean(folder)
    passed_over: list[str] = []
    return checkpoint.resumable(folder, passed_over.append), passed_over


def _check_types(
    layers: object, dataset: object, mesh: object, optimizer: object, batch: object
) -> None:
    if not isinstance(layers, list) or not all(isinstance(x, LayerSpec) for x in layers):
        raise ValueError(f"layers must be a list of nn.LayerSpec, got {layers!r}")
    if not layers:
        raise ValueError("layers is empty")
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be an integer of at least 1, got {batch!r}")
    for name, value, kind in (("dataset", dataset, Dataset), ("mesh", mesh, Mesh)):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
    if isinstance(optimizer, type) or not hasattr(optimizer, "update"):
        raise ValueError(f"optimizer must be such as optim.AdamW(), got {optimizer!r}")


def _rest(newest: Path | None) -> str:
    """What is left of a run whose state is broken."""
    return "there is no checkpoint" if newest is None else f"{newest} is from before"


def _is_pair(grains: object) -> bool:
    return (
        isinstance(grains, tuple)
        and len(grains) == 2
        and all(isinstance(n, int) and n >= 1 for n in grains)
    )


def _piece(kind: Any, span: Span, array: Array) -> checkpoint.Piece:
    """A checkpoint's view of a span: true shape, no padding; a tied parameter is its original."""
    p = span.parameter
    rows = p.true_rows if p.true_rows is not None else p.shape[0]
    return checkpoint.Piece(
        p.tied_to or p.name, kind, (rows, *p.shape[1:]), span.global_start, array
    )
