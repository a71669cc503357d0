"""One rank's part of a model in training: its stage, its buckets, and one step over them.

No files and no data sets here: arrays in, losses and updated weights out.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from plait import backend, ops
from plait.autograd import SILENT, Observer, Tensor
from plait.backend import (
    PRECISIONS,
    Array,
    assign,
    fill,
    float32,
    host,
    kernels,
    put,
    to_device,
    to_host,
    zeros,
)
from plait.errors import UserError
from plait.mesh import Mesh
from plait.nn import Build, LayerSpec, Recomputed
from plait.ops.position import Position, Share, Watched
from plait.optim import Optimizer
from plait.parallel.bucket import Bucket, Span, make_buckets
from plait.parallel.declared import Declared, checked
from plait.parallel.partition import stage_bounds
from plait.parallel.reduction import Reduction
from plait.parallel.schedule import SCHEDULES
from plait.parallel.stage import Stage
from plait.parallel.tie import Tie
from plait.train.settings import Settings as Settings  # others take it from here
from plait.train.vocabulary import gathered, largest

LIMBS = host.kernels.LIMBS
BUCKET_SIZE = {"cpu": 1 << 20, "cuda": 1 << 25}  # elements; a GPU wants few large kernels


@dataclass(frozen=True)
class StepResult:
    """loss: mean over unmasked targets; grad_norm: before clipping, over all parameters."""

    loss: float
    grad_norm: float
    targets: int


def _kind(bucket: Bucket) -> str:
    """What a checkpoint calls a bucket's values."""
    return "buffer" if bucket.statistic else "master"


class Engine:
    def __init__(
        self,
        specs: list[LayerSpec],
        mesh: Mesh,
        optimizer: Optimizer,
        settings: Settings,
        bucket_size: int | None = None,
    ):
        self.specs, self.mesh, self.optimizer, self.settings = specs, mesh, optimizer, settings
        self.data, self.tensor, self.pipeline = mesh.data, mesh.tensor, mesh.pipeline
        self.share = Share(settings.batch, self.data.leaves, self.data.rank, settings.microbatch)
        precision = PRECISIONS[settings.precision]
        bounds = stage_bounds(specs, self.pipeline.size, self.share.usual)
        self.stage_bounds = bounds
        first, last = bounds[self.pipeline.rank], bounds[self.pipeline.rank + 1]
        self.layers = [
            specs[i].build(Build(self.tensor, specs[i].name, i)) for i in range(first, last)
        ]
        run = list(self.layers)
        if settings.recompute == "layer":
            # The last layer's activations are needed at once: running it again would only cost
            # time.
            run = [
                Recomputed(layer) if first + i < len(specs) - 1 else layer
                for i, layer in enumerate(run)
            ]
        own = [spec.name for spec in specs[first:last]]
        self.stage = Stage(list(zip(own, run, strict=True)), self.pipeline, precision)
        self.parameters = [p for layer in self.layers for p in layer.parameters()]
        mine = [Declared.of(p) for p in self.parameters]
        everywhere = checked(self.pipeline.all_gather_object(mine))
        tied = {x for names in everywhere for p in names if p.tied_to for x in (p.name, p.tied_to)}
        self.buckets = make_buckets(
            self.parameters, self.data, self.tensor, self.share.slots, precision, settings.zero,
            bucket_size or BUCKET_SIZE[backend.name()], alone=tied,
        )  # fmt: skip
        self.ties = self._ties(everywhere)
        self.master: dict[int, Array] = {}
        self.state: dict[int, dict[str, Array]] = {}
        for index, bucket in enumerate(self.buckets):
            weights = bucket.weights[bucket.own]
            self.master[index] = (
                weights if weights.dtype == float32 else zeros(len(weights), float32)
            )
            names = () if bucket.statistic else optimizer.state
            self.state[index] = {name: zeros(len(weights), float32) for name in names}
        self._copies = {id(bucket) for tie in self.ties for bucket in tie.copies}
        self._aliases = {id(bucket) for tie in self.ties for bucket in tie.aliases}
        number = {id(bucket): index for index, bucket in enumerate(self.buckets)}
        for tie in self.ties:
            for alias in tie.aliases:
                # One weight, one master, one state: an alias keeps gradients of its own only.
                index, home = number[id(alias)], number[id(tie.home)]
                self.master[index], self.state[index] = self.master[home], self.state[home]
        inits = {p.name: p.init for names in everywhere for p in names}
        self._init = {p.name: inits[p.tied_to or p.name] for p in self.parameters}
        self.observer: Observer = SILENT
        # Passes are the same work each step, if no op asks for the step's number, and all of it is
        # the device's if no collective is the host's: messages between stages are.
        recordable = self.pipeline.size == 1 and self.data.stream_ordered
        self._recorder = backend.recorder() if recordable and self.tensor.stream_ordered else None
        self._steps_differ = False
        self.initialize()
        backend.trim()  # of what came before, and of what only the start needed
        weakref.finalize(self, backend.trim)  # the arrays go right after it

    def observe(self, observer: Observer) -> None:
        """observer hears of every step from here on."""
        self.observer = self.stage.observer = observer
        for p in self.parameters:
            p.observer = observer

    # --- parameters ---

    def _ties(self, everywhere: list[list[Declared]]) -> list[Tie]:
        """Tied parameters over all stages, in the same order on every stage."""
        stage_of = {p.name: stage for stage, names in enumerate(everywhere) for p in names}
        groups: dict[str, list[str]] = {}
        for names in everywhere:
            for p in names:
                if p.tied_to is not None:
                    groups.setdefault(p.tied_to, [p.tied_to]).append(p.name)
        buckets = {b.parameters[0].name: b for b in self.buckets if len(b.parameters) == 1}
        return [
            Tie([(stage_of[name], buckets.get(name)) for name in group], self.pipeline)
            for group in groups.values()
        ]

    def initialize(self) -> None:
        """Every weight from (seed, name, global index), whatever the layout."""
        for index, bucket in enumerate(self.buckets):
            whole = zeros(bucket.size, float32)
            for span in bucket.spans(slice(0, bucket.size)):
                init = self._init[span.parameter.name]
                out = whole[span.start : span.stop]
                if init.std == 0.0:
                    fill(out, init.mean)
                else:
                    name = span.parameter.tied_to or span.parameter.name
                    stream = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
                    kernels.random_normal(
                        self.settings.seed, stream, span.global_start, init.mean, init.std, out
                    )
            self.set_weights(index, whole)

    def set_weights(self, index: int, whole: Array) -> None:
        """A bucket's weights and masters from float32 values of the whole bucket."""
        bucket = self.buckets[index]
        kernels.convert(whole, bucket.weights)
        assign(self.master[index], whole[bucket.own])
        self.observer.replaced()

    def owned(self) -> list[tuple[str, Span, Array]]:
        """(kind, span, values) of the state that this rank alone writes to a checkpoint."""
        found = []
        for index, bucket in enumerate(self.buckets):
            if id(bucket) in self._copies or (bucket.replicated and self.tensor.rank != 0):
                continue
            for span in bucket.spans(bucket.cut):
                where = slice(span.start - bucket.own.start, span.stop - bucket.own.start)
                found.append((_kind(bucket), span, to_host(self.master[index][where])))
                for kind, x in self.state[index].items():
                    found.append((kind, span, to_host(x[where])))
        return found

    def to_load(self) -> tuple[list[tuple[str, Span, Array]], Callable[[], None]]:
        """(kind, span, array) of everything this rank needs from a checkpoint, to be filled in
        place, and what to call once that is done."""
        wanted: list[tuple[str, Span, Array]] = []
        wholes = [np.zeros(bucket.size, np.float32) for bucket in self.buckets]
        states = [{kind: to_host(x) for kind, x in held.items()} for held in self.state.values()]
        for index, (bucket, whole) in enumerate(zip(self.buckets, wholes, strict=True)):
            for span in bucket.spans(slice(0, bucket.size)):
                wanted.append((_kind(bucket), span, whole[span.start : span.stop]))
            for kind, state in states[index].items():
                for span in bucket.spans(bucket.own):
                    start = span.start - bucket.own.start
                    wanted.append((kind, span, state[start : start + span.stop - span.start]))

        def finish() -> None:
            for index, whole in enumerate(wholes):
                self.set_weights(index, to_device(whole))
                for kind, state in states[index].items():
                    put(self.state[index][kind], state)

        return wanted, finish

    # --- one step ---

    def sequence(self, inputs: Array) -> int | None:
        """The length of the sequences that activations are cut along; None if they are not."""
        if not self.settings.sequence_parallel:
            return None
        return next((spec.sequence for spec in self.specs if spec.sequence), inputs.shape[1])

    def step(self, step: int, learning_rate: float, inputs: Array, targets: Array) -> StepResult:
        """Trains on this replica's samples of step `step`; targets < 0 are masked.

        UserError if no target of the whole batch is unmasked."""
        settings = self.settings
        positions = self.share.microbatches(step, settings.seed, self.sequence(inputs))
        starts = [p.first_sample - self.share.start for p in positions]
        parts = [slice(a, a + p.count) for a, p in zip(starts, positions, strict=True)]
        unmasked = np.array([np.count_nonzero(targets >= 0)], np.int64)
        count = int(self.data.all_reduce(unmasked)[0])
        if count == 0:
            raise UserError(f"step {step + 1}: every target of the batch is masked")
        actions = SCHEDULES[settings.schedule](
            self.pipeline.rank, self.pipeline.size, len(positions)
        )
        self.observer.step(step, inputs, targets)

        def passes(inputs: Array, targets: Array) -> tuple[Array, list[Array]]:
            """Forward, backward and reductions: the sums of losses and of squared gradients
            (_limbs), and the gradients of all buckets."""
            reduction = Reduction(self.buckets, self.share.nodes, self.observer)
            mine = positions
            if self._recorder is not None:
                mine = [position.watched() for position in positions]
            losses = self.stage.train(
                actions, mine, [inputs[part] for part in parts],
                lambda y, index: self._loss(y, targets[parts[index]]),
                float(np.float32(1.0 / count)), reduction,
            )  # fmt: skip
            reduction.finish()
            for tie in self.ties:
                tie.add_gradients()
            self.observer.reduced()
            return self._limbs(losses), [bucket.gradient for bucket in self.buckets]

        if self._recorder is None or self.observer is not SILENT:
            limbs, _ = passes(inputs, targets)
        else:
            Watched.asked.clear()
            arrays = self.stage.stored(inputs), targets.astype(np.int32, copy=False)
            limbs, gradients = self._recorder.run(count, arrays, passes, self._repeatable)
            for bucket, gradient in zip(self.buckets, gradients, strict=True):
                bucket.gradient = gradient
            self._steps_differ = self._steps_differ or bool(Watched.asked)
        return self._update(step, learning_rate, limbs, count)

    def _repeatable(self) -> bool:
        """Whether what a step computes hangs on nothing but its samples: not with dropout."""
        return not self._steps_differ

    @property
    def _vocabulary(self) -> int:
        """Columns of the logits without padding, which the last layer tells."""
        found = getattr(self.layers[-1], "vocabulary", None)
        if not isinstance(found, int):
            raise ValueError(
                f"the last layer ({self.specs[-1].name}) must give logits split over the tensor "
                "axis and say how many there are: end with nn.Head, or set its `vocabulary`"
            )
        return found

    def _loss(self, logits: Tensor, targets: Array) -> Tensor:
        result: Tensor = ops.CrossEntropy.apply(logits, targets, self._vocabulary, self.tensor)
        return result

    def _update(self, step: int, learning_rate: float, limbs: Array, count: int) -> StepResult:
        total = self.mesh.world.all_reduce(to_host(limbs))
        backend.check_faults()
        loss, square = (host.kernels.exact_value(each) for each in total)
        norm = float(np.sqrt(square))
        scale = 1.0
        clip = self.settings.clip
        if clip is not None and norm > clip:
            scale = float(np.float32(clip / norm))
        if np.isfinite(norm):
            for index, bucket in enumerate(self.buckets):
                if id(bucket) not in self._aliases:
                    self._update_bucket(index, scale, learning_rate, step + 1)
                    bucket.gather_weights()
            for bucket in self.buckets:
                bucket.finish_weights()
        self.observer.updated()
        return StepResult(loss / count, norm, count)

    def _update_bucket(self, index: int, scale: float, learning_rate: float, step: int) -> None:
        bucket = self.buckets[index]
        state, weights = self.state[index], bucket.weights[bucket.own]
        for p, start, stop in bucket.alike():
            low, high = max(start, bucket.own.start), min(stop, bucket.own.stop)
            if low >= high:
                continue
            where = slice(low - bucket.own.start, high - bucket.own.start)
            if p.momentum is not None:
                kernels.moving_average(
                    bucket.gradient[where], self.settings.batch, p.momentum,
                    self.master[index][where],
                )  # fmt: skip
                continue
            self.optimizer.update(
                bucket.gradient[where], scale, learning_rate, p.decays, step,
                self.master[index][where], {k: x[where] for k, x in state.items()}, weights[where],
            )  # fmt: skip

    def _limbs(self, losses: list[Array]) -> Array:
        """This rank's part of two exact sums, which add up as integers: of losses, and of squared
        gradients."""
        limbs = zeros((2, LIMBS), np.int64)
        if self.tensor.rank == 0:
            for part in losses:
                for sample in part.reshape(len(part), -1):
                    kernels.exact_sum(sample, False, limbs[0])
        for bucket in self.buckets:
            if id(bucket) in self._copies or bucket.statistic:
                continue
            if bucket.replicated and self.tensor.rank != 0:
                continue
            for where in bucket.chunks():
                start = where.start - bucket.own.start
                size = where.stop - where.start
                kernels.exact_sum(bucket.gradient[start : start + size], True, limbs[1])
        return limbs

    # --- evaluation ---

    def evaluate(
        self, position: Position, inputs: Array, targets: Array
    ) -> tuple[Array, Array] | None:
        """Losses and whether the largest logit is the target, per target; None but on the last
        stage."""
        tape, y, _ = self.stage.forward(position, inputs, recording=False)
        self.stage.drain()
        if not self.stage.last:
            return None
        with tape:
            losses = to_host(self._loss(y, targets).array)
        backend.check_faults()
        found = largest(y.array, self._vocabulary, self.tensor)
        return losses, found == targets.reshape(losses.shape)

    def logits(self, position: Position, inputs: Array) -> Array | None:
        """Logits (B, S, vocabulary) float32 on the last stage, gathered over the tensor axis."""
        _, y, _ = self.stage.forward(position, inputs, recording=False)
        self.stage.drain()
        if not self.stage.last:
            return None
        return gathered(to_host(y.array), self._vocabulary, self.tensor)

    # --- sizes ---

    @property
    def parameter_count(self) -> int:
        """Elements of this rank's trained parameters, padding left out."""
        trained = [b for b in self.buckets if not b.statistic]
        return sum(s.stop - s.start for b in trained for s in b.spans(slice(0, b.size)))
