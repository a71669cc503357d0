"""One pipeline stage: runs a schedule's actions on its layers, one tape per microbatch.

Activations and their gradients pass between neighbours outside autograd; the first message of each
microbatch size carries the shape; in evaluation every message does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from plait import ops
from plait.autograd import SILENT, Observer, Tape, Tensor
from plait.backend import Array, contiguous, empty, on_device, to_device
from plait.comm import Communicator, Work
from plait.nn import Layer
from plait.ops.position import Position
from plait.parallel.reduction import Reduction
from plait.parallel.schedule import Action


class Stage:
    """layers: this stage's, with their names. pipeline: the communicator along the pipeline axis.
    observer: hears of every training microbatch."""

    def __init__(self, layers: list[tuple[str, Layer]], pipeline: Communicator, precision: Any):
        self.layers, self.pipeline, self.precision = layers, pipeline, precision
        self.observer: Observer = SILENT
        self.first = pipeline.rank == 0
        self.last = pipeline.rank == pipeline.size - 1
        self._shapes: dict[tuple[int, int, int | None], tuple[int, ...]] = {}
        self._sends: list[Work] = []

    def forward(self, position: Position, inputs: Array, recording: bool) -> tuple[Tape, Any, Any]:
        """Runs the layers on `inputs` (first stage) or on what the previous stage sends."""
        if not self.first:
            inputs = self._receive(self.pipeline.rank - 1, position)
        elif not on_device(inputs):
            inputs = to_device(self.stored(inputs))
        observer = self.observer if recording else SILENT
        with Tape(position, ops.fan_in, recording=recording, observer=observer) as tape:
            x: Any = tape.input(inputs, grad=not self.first)
            for name, layer in self.layers:
                observer.layer(name)
                x = layer(x)
                self._progress()
        if not self.last:
            self._send(x.array, self.pipeline.rank + 1, position)
        return tape, x, inputs

    def stored(self, inputs: Array) -> Array:
        """A host's inputs in the type that layers take."""
        kind = self.precision if inputs.dtype.kind == "f" else inputs.dtype
        return inputs.astype(kind, copy=False)

    def train(
        self,
        actions: tuple[Action, ...],
        positions: list[Position],
        inputs: list[Array],
        loss: Callable[[Tensor, int], Tensor],
        scale: float,
        reduction: Reduction,
    ) -> list[Array]:
        """All actions of one step; the last stage returns the losses of each microbatch.

        loss(logits, microbatch) is called on the last stage under the microbatch's tape; `scale`
        is its gradient. reduction hears of every parameter's gradient as it becomes ready.
        """
        tapes: dict[int, tuple[Tape, Tensor]] = {}
        losses: list[Array] = []
        for action in actions:
            index = action.microbatch
            position = positions[index]
            if action.kind == "forward":
                tape, y, _ = self.forward(position, inputs[index], recording=True)
                if self.last:
                    self.observer.layer("loss")
                    with tape:
                        y = loss(y, index)
                    losses.append(y.array)
                tapes[index] = tape, y
            else:
                tape, y = tapes.pop(index)
                grad: Any = scale
                if not self.last:
                    grad = self._receive(self.pipeline.rank + 1, position)
                reduction.begin(position, last=index == len(positions) - 1)
                self._backward(tape, y, grad, position, reduction)
                reduction.end()
        self.drain()
        return losses

    def _backward(
        self, tape: Tape, y: Tensor, grad: Any, position: Position, reduction: Reduction
    ) -> None:
        """The previous stage waits for the gradient of this one's input, and nobody for those of
        the weights: these come after it is sent (as in Qi et al. 2023, Zero Bubble)."""

        def send(grads: tuple[Any, ...]) -> None:
            if grads[0] is not None:
                self._send(grads[0], self.pipeline.rank - 1, position)

        def progress() -> None:
            reduction.progress()
            self._progress()

        tape.backward(y, grad, reduction.ready, progress, early=None if self.first else send)

    def _progress(self) -> None:
        """Between layers: moves what is being sent along."""
        if self._sends:
            self.pipeline.progress()

    def drain(self) -> None:
        """Waits for all sends."""
        for work in self._sends:
            work.wait()
        self._sends.clear()

    def _send(self, x: Array, to: int, position: Position) -> None:
        x = contiguous(x)
        key = (to, position.count, position.sequence)
        known = self._shapes.get(key) if position.training else None
        if known is None:
            header = np.array([x.ndim, *x.shape, *[0] * (7 - x.ndim)], np.int64)
            self._sends.append(self.pipeline.send(header, to, blocking=False))
        elif known != x.shape:
            raise ValueError(
                f"a stage sent {known} and now {x.shape}: shapes must stay in training"
            )
        if position.training:
            self._shapes[key] = x.shape
        self._sends.append(self.pipeline.send(x, to, blocking=False))
        self._sends = [work for work in self._sends if not work.test()]

    def _receive(self, source: int, position: Position) -> Array:
        # Gradients come back in the shape that was sent forward, from a rank that keys it alike.
        key = (-1 - source, position.count, position.sequence)
        shape = self._shapes.get(key) if position.training else None
        if shape is None:
            header = np.empty(8, np.int64)
            self.pipeline.recv(header, source)
            shape = tuple(int(n) for n in header[1 : 1 + header[0]])
        if position.training:
            self._shapes[key] = shape
        out = empty(shape, self.precision)
        self.pipeline.recv(out, source)
        return out
