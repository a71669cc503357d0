"""Reverse-mode differentiation over an explicit tape.

A Tape records Function calls in execution order and replays them backwards once. Nodes hold keys,
never tensors: only what a Function saves stays alive. Parameter gradients are added by the Function
into preallocated buffers; activation gradients meet in one fan-in op. Arrays are opaque here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, ClassVar, Protocol

from plait.autograd.observer import SILENT, Observer

Array = Any


class Pending(Protocol):
    """A gradient still under way, such as a communicator's Work."""

    def wait(self) -> Array: ...


class Tensor:
    """An activation: an array and its key on the tape."""

    __slots__ = ("array", "key")
    _next_key: ClassVar[Callable[[], int]] = count().__next__

    def __init__(self, array: Array):
        self.array, self.key = array, Tensor._next_key()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)


class Context:
    """What one Function call keeps for its backward."""

    __slots__ = ("_later", "label", "needs_input_grad", "position", "saved")

    def __init__(self, position: Any, needs_input_grad: tuple[bool, ...]):
        self.saved: tuple[Any, ...] = ()
        self.position = position
        self.needs_input_grad = needs_input_grad
        self.label: Any = None  # the observer's name for this call
        self._later: list[Callable[[], None]] = []

    def save(self, *values: Any) -> None:
        self.saved = values

    def later(self, work: Callable[[], None]) -> None:
        """Runs `work` (a weight gradient) after backward returned, before its result is waited
        for; or, where the inputs' gradients are in a hurry, after these."""
        self._later.append(work)


class Function:
    """One differentiable operation: static forward(ctx, ...) and backward(ctx, *grads).

    forward gets arrays for Tensors and everything else as given; it returns an array or a tuple of
    arrays. backward gets one gradient per output (None if unused) and returns one per Tensor input:
    an array, None, or a Pending. It never writes its arguments.
    """

    # Functions are never made, only their classes used: abstract methods would not be noticed.
    @staticmethod
    def forward(ctx: Context, *inputs: Any) -> Any:
        raise NotImplementedError("a Function defines forward(ctx, ...)")

    @staticmethod
    def backward(ctx: Context, *grads: Any) -> Any:
        raise NotImplementedError("a Function that is differentiated defines backward(ctx, ...)")

    @classmethod
    def apply(cls, *inputs: Any, parameters: Iterable[Any] = ()) -> Any:
        tape = Tape.current
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        if tape is not None:
            tape._check(tensors)
        position = tape.position if tape is not None else None
        needs = tuple(tape is not None and x.key in tape._tracked for x in tensors)
        ctx = Context(position, needs)
        result = cls.forward(ctx, *(x.array if isinstance(x, Tensor) else x for x in inputs))
        outputs = tuple(map(Tensor, result)) if isinstance(result, tuple) else (Tensor(result),)
        if any(getattr(y.array, "dtype", None) == "float64" for y in outputs):
            raise ValueError(
                f"{cls.__name__}.forward returned float64: activations are float32 or bfloat16, as "
                "its inputs are"
            )
        if tape is not None:
            used = (*(x for x in inputs if is_parameter(x)), *parameters)
            arrays = tuple(y.array for y in outputs)
            ctx.label = tape.observer.forward(cls.__name__, position, used, arrays)
            tape._record(cls, ctx, tensors, needs, used, outputs)
        return outputs if isinstance(result, tuple) else outputs[0]


def _kind(array: Array) -> str:
    """Shape and type, such as (2, 3) float32, which a gradient shares with its input."""
    shape = getattr(array, "shape", None)
    return f"{type(array).__name__}" if shape is None else f"{tuple(shape)} {array.dtype}"


def _integer(array: Array) -> bool:
    return getattr(getattr(array, "dtype", None), "kind", "f") in "iub"


def is_parameter(x: Any) -> bool:
    return getattr(x, "is_parameter", False)


class Tape:
    """with Tape(position) as tape: y = f(tape.input(x)) ... grads = tape.backward(y, grad_y)

    position: who these samples are (step, first sample, count, training), handed to every Function.
    fan_in(arrays) -> array adds the gradients of all uses of one tensor, in float32, in fixed
    order. recording=False only hands out the position, for evaluation. strict refuses foreign
    tensors. observer hears of every call and its gradients.
    """

    current: ClassVar[Tape | None] = None

    def __init__(
        self,
        position: Any = None,
        fan_in: Callable[[Sequence[Array]], Array] = sum,  # type: ignore[assignment]
        strict: bool = False,
        recording: bool = True,
        observer: Observer = SILENT,
    ):
        self.position, self.fan_in, self.observer = position, fan_in, observer
        self._strict, self._recording = strict, recording
        self._nodes: list[Any] = []
        self._uses: dict[Any, int] = {}
        self._tracked: set[int] = set()
        self._known: set[int] = set()
        self._inputs: list[int] = []
        self._outer: Tape | None = None

    def __enter__(self) -> Tape:
        self._outer, Tape.current = Tape.current, self
        return self

    def __exit__(self, *_: object) -> None:
        Tape.current = self._outer

    def input(self, array: Array, grad: bool = True) -> Tensor:
        """Enters an array. backward returns a gradient for each, None where grad is False."""
        tensor = Tensor(array)
        self._inputs.append(tensor.key)
        self._known.add(tensor.key)
        if grad:
            self._tracked.add(tensor.key)
        return tensor

    def _check(self, tensors: list[Tensor]) -> None:
        if self._strict:
            for tensor in tensors:
                if tensor.key not in self._known:
                    raise ValueError(
                        "a recomputed layer used a tensor it was neither given nor made: "
                        "its gradient would be lost. Pass it to recompute(layer, ...) as an input"
                    )

    def _record(
        self,
        function: type[Function],
        ctx: Context,
        tensors: list[Tensor],
        needs: tuple[bool, ...],
        parameters: tuple[Any, ...],
        outputs: tuple[Tensor, ...],
    ) -> None:
        self._known.update(x.key for x in outputs)
        if not self._recording or not (any(needs) or parameters):
            return
        for p in parameters:
            self._uses[p] = self._uses.get(p, 0) + 1
        self._tracked.update(x.key for x in outputs)
        inputs = tuple(
            (x.key if need and not _integer(x.array) else None, _kind(x.array))
            for x, need in zip(tensors, needs, strict=True)
        )
        self._nodes.append((function, ctx, inputs, parameters, tuple(x.key for x in outputs)))

    def backward(
        self,
        outputs: Tensor | Sequence[Tensor],
        grads: Array | Sequence[Array],
        on_grad_ready: Callable[[Any], None] | None = None,
        after_node: Callable[[], None] | None = None,
        early: Callable[[tuple[Array | None, ...]], None] | None = None,
    ) -> tuple[Array | None, ...]:
        """Gradients of the inputs. on_grad_ready(parameter) is called once all its uses are done;
        after_node() between nodes (to poke communication). early(gradients of the inputs), where
        given, is called as soon as they are there: what later() put off comes after it, but for
        what hides communication."""
        if isinstance(outputs, Tensor):
            outputs, grads = (outputs,), (grads,)
        found: dict[int, list[Array]] = {}
        for tensor, grad in zip(outputs, grads, strict=True):
            found.setdefault(tensor.key, []).append(grad)
        put_off: list[tuple[list[Callable[[], None]], tuple[Any, ...]]] = []

        def done(parameters: tuple[Any, ...]) -> None:
            for p in parameters:
                self._uses[p] -= 1
                if self._uses[p] == 0 and on_grad_ready is not None:
                    on_grad_ready(p)
            if after_node is not None:
                after_node()

        while self._nodes:
            function, ctx, inputs, parameters, output_keys = self._nodes.pop()
            node_grads = [self._collect(found, key) for key in output_keys]
            works: list[Callable[[], None]] = []
            if any(g is not None for g in node_grads):
                works = self._step(found, function, ctx, inputs, node_grads, early is not None)
            if works:
                put_off.append((works, parameters))
                parameters = ()
            done(parameters)
        result = tuple(self._collect(found, key) for key in self._inputs)
        if early is not None:
            early(result)
        for works, parameters in put_off:
            for work in works:
                work()
            works.clear()  # and with it what it held
            done(parameters)
        return result

    def _step(
        self, found: dict[int, list[Array]], function: Any, ctx: Context, inputs: Any, grads: Any,
        put_off: bool,
    ) -> list[Callable[[], None]]:  # fmt: skip
        """Returns what is put off: nothing, if it is not wanted, or if a Work is under way that it
        can hide."""
        self.observer.backward(ctx.label)
        result = function.backward(ctx, *grads)
        if result is None and any(key is not None for key, _ in inputs):
            raise ValueError(f"{function.__name__}.backward returned None instead of gradients")
        if not isinstance(result, tuple):
            result = (result,) if len(inputs) == 1 else (None,) * len(inputs)
        if len(result) != len(inputs):
            raise ValueError(
                f"{function.__name__}.backward returned {len(result)} gradients for "
                f"{len(inputs)} tensor inputs"
            )
        works = ctx._later
        if not put_off or any(hasattr(grad, "test") for grad in result):
            for work in works:
                work()
            works = []
        wholes: list[Array | None] = []
        for (key, kind), grad in zip(inputs, result, strict=True):
            whole = grad.wait() if hasattr(grad, "wait") else grad
            wholes.append(whole if key is not None else None)
            if key is not None and whole is not None:
                if _kind(whole) != kind:
                    raise ValueError(
                        f"{function.__name__}.backward returned {_kind(whole)} as the gradient of "
                        f"an input that is {kind}"
                    )
                found.setdefault(key, []).append(whole)
        self.observer.gradients(ctx.label, self.position, tuple(wholes))
        return works

    def _collect(self, found: dict[int, list[Array]], key: int) -> Array | None:
        grads = found.pop(key, None)
        if grads is None:
            return None
        return grads[0] if len(grads) == 1 else self.fan_in(grads)
