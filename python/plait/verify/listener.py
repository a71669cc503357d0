"""From what an Observer hears to named tensors: activations by sample, parameters by global index.

Nothing is sent here, so that a rank that does too much or too little cannot hang the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import Any

import numpy as np

from plait.autograd import Observer
from plait.backend import Array, float32
from plait.comm.tree import maximal_nodes
from plait.ops.parameter import Parameter
from plait.ops.position import Position, Segment
from plait.parallel.bucket import Bucket
from plait.train.engine import Engine
from plait.verify.key import BACKWARD, CHAIN, DATA, FORWARD, REDUCED, RESULT, STATE, Key


class Listener(Observer, ABC):
    """Tells its two sinks of every tensor of the engine's steps, as it is computed."""

    hears_chains = True

    def __init__(self, engine: Engine):
        self.engine = engine
        self._names = [spec.name for spec in engine.specs] + ["loss"]
        first = engine.stage_bounds[engine.pipeline.rank]
        self._stage = [*range(first, first + len(engine.layers)), len(self._names) - 1]
        self._owner = {
            p.name: first + i for i, layer in enumerate(engine.layers) for p in layer.parameters()
        }
        share = engine.share
        ends = (share.leaf_start(leaf + 1) - 1 for leaf in range(share.leaves.count))
        self._leaf_of = {last: leaf for leaf, last in enumerate(ends)}
        self._user: dict[str, tuple[int, int]] = {}  # parameter -> (layer, call) that uses it
        self._step = self._layer = self._call = self._turn = 0
        self._again = False
        self.found: Any = None  # what the sinks made of it
        engine.observe(self)

    # --- sinks ---

    @abstractmethod
    def samples(self, key: Key, first: int, array: Array, count: int) -> None:
        """array[i] is of global sample first + i; where its length is not `count`, the array is of
        the microbatch as a whole."""

    @abstractmethod
    def pieces(self, key: Key, whole: int, parts: list[tuple[int, Array]]) -> None:
        """parts: (start in the flat global array of `whole` elements, values). The last call with a
        key counts."""

    # --- what is heard ---

    def step(self, step: int, inputs: Array, targets: Array) -> None:
        self._step = step
        self.state()
        for part, (name, array) in enumerate((("inputs", inputs), ("targets", targets))):
            key = Key(step, DATA, 0, 0, 0, part, name)
            self.samples(key, self.engine.share.start, array, len(array))

    def result(self, **values: float) -> None:
        """The step is over, with this loss and the like."""
        for part, (name, value) in enumerate(values.items()):
            key = Key(self._step, RESULT, 0, 0, 0, part, name.replace("_", " "))
            self.pieces(key, 2, [(0, np.array([value], np.float64).view(np.float32))])
        self._step += 1

    def layer(self, name: str) -> None:
        """Layers without parameters may share a name: of this stage's, in order and over again for
        each microbatch, the next one is meant."""
        count = len(self._stage)
        turns = ((self._turn + i) % count for i in range(count))
        turn = next(i for i in turns if self._names[self._stage[i]] == name)
        self._layer, self._turn = self._stage[turn], turn + 1
        self._call, self._again = 0, False

    def forward(
        self,
        function: str,
        position: Position,
        parameters: tuple[Parameter, ...],
        outputs: tuple[Array, ...],
    ) -> tuple[int, int, str]:
        layer, call = self._layer, self._call
        names = ", ".join(p.name for p in parameters) if function != "Recompute" else ""
        label = layer, call, f"{function} ({names or self._names[layer]})"
        self._call += 1
        for p in parameters:
            self._user.setdefault(p.name, (layer, call))
        if function == "Recompute":
            return label
        for part, array in enumerate(outputs):
            what = f"output{f' {part}' if len(outputs) > 1 else ''} of {label[2]}"
            if self._again:
                key = Key(self._step, BACKWARD, -layer, 0, call, part, f"recomputed {what}")
            else:
                key = Key(self._step, FORWARD, layer, 0, call, part, what)
            self.samples(key, position.first_sample, array, position.count)
        return label

    def again(self, label: tuple[int, int, str]) -> None:
        self._layer, self._call, self._again = label[0], 0, True

    def gradients(
        self, label: tuple[int, int, str], position: Position, gradients: tuple[Any, ...]
    ) -> None:
        layer, call, name = label
        if name.startswith("Recompute"):
            return
        for part, array in enumerate(gradients):
            if array is not None:
                what = f"gradient of input {part} of {name}"
                key = Key(self._step, BACKWARD, -layer, 1, -call, part, what)
                self.samples(key, position.first_sample, array, position.count)

    def chain(self, parameter: Parameter, position: Position, segment: Segment) -> None:
        last = position.first_sample + segment.samples.stop - 1
        leaf = self._leaf_of.get(last)
        if leaf is None:
            self._gradient(parameter, segment.slot, f"up to sample {last}")
        else:
            self._gradient(parameter, segment.slot, _leaves(leaf, leaf + 1))

    def merged(self, parameter: Parameter, position: Position, segment: Segment, slot: int) -> None:
        leaf = self._leaf_of[position.first_sample + segment.samples.stop - 1]
        leaves = self.engine.share.leaves
        first = maximal_nodes(leaves.count, leaves.run(self.engine.share.rank).start, leaf)[slot][0]
        self._gradient(parameter, slot, _leaves(first, leaf + 1))

    def started(self, bucket: int) -> None:
        share = self.engine.share
        for slot, node in enumerate(share.leaves.nodes(share.rank)):
            for parameter in self.engine.buckets[bucket].parameters:
                self._gradient(parameter, slot, _leaves(*node))

    def _gradient(self, p: Parameter, slot: int, of: str) -> None:
        """A part of p's gradient, before its reduction. What comes later under one name counts."""
        layer, call = self._user.get(p.name, (self._owner[p.name], 0))
        what = f"gradient of {p.name} before its reduction, {of}"
        tensor, grad = self.engine.tensor, p.slot(slot)
        parts = [("", grad)]
        if p.replicated:
            names = (f", chunk {leaf} of the positions" for leaf in tensor.leaves.run(tensor.rank))
            parts = list(zip(names, grad, strict=True))
        for chunk, part in parts:
            key = Key(self._step, BACKWARD, -layer, 1, -call, CHAIN, what + chunk)
            self.pieces(key, _elements(p), _rows(p, part))

    def reduced(self) -> None:
        for bucket in self.engine.buckets:
            self._bucket(REDUCED, 0, "reduced gradient", bucket, bucket.gradient, bucket.own)

    def state(self) -> None:
        """Weights, masters and optimizer state; called once more after the last step."""
        engine = self.engine
        for index, bucket in enumerate(engine.buckets):
            everything = slice(0, bucket.size)
            self._bucket(STATE, 0, "weight", bucket, bucket.weights, everything)
            if bucket.weights.dtype != float32:
                self._bucket(STATE, 1, "master", bucket, engine.master[index], bucket.own)
            for part, (kind, array) in enumerate(engine.state[index].items(), 2):
                self._bucket(STATE, part, f"{kind} moment", bucket, array, bucket.own)

    def _bucket(
        self, phase: int, part: int, kind: str, bucket: Bucket, array: Array, where: slice
    ) -> None:
        found: dict[str, list[tuple[int, Array]]] = {p.name: [] for p in bucket.parameters}
        for span in bucket.spans(where):
            values = array[span.start - where.start : span.stop - where.start]
            found[span.parameter.name].append((span.global_start, values))
        for p in bucket.parameters:
            key = Key(self._step, phase, self._owner[p.name], 0, 0, part, f"{kind} of {p.name}")
            self.pieces(key, _elements(p), found[p.name])


def _elements(p: Parameter) -> int:
    """Of the whole parameter, padding left out."""
    return (p.true_rows if p.true_rows is not None else p.shape[0]) * prod(p.shape[1:])


def _leaves(first: int, end: int) -> str:
    return f"data leaf {first}" if end == first + 1 else f"data leaves {first} to {end - 1}"


def _rows(p: Parameter, local: Array) -> list[tuple[int, Array]]:
    """A local array of a parameter's shape, as pieces of the flat global one."""
    row, whole = prod(p.shape[1:]), _elements(p)
    parts, at, flat = [], 0, local.reshape(-1)
    for first, last in p.rows:
        size = (last - first) * row
        kept = min(size, max(whole - first * row, 0))
        parts.append((first * row, flat[at : at + kept]))
        at += size
    return parts
