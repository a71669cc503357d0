"""Recomputation: a layer keeps its inputs only and runs again in backward (Chen et al. 2016)."""

from __future__ import annotations

from typing import Any

from plait.autograd.tape import Array, Context, Function, Tape, Tensor


class Recompute(Function):
    """Runs `layer` again in backward instead of keeping its activations."""

    @staticmethod
    def forward(ctx: Context, layer: Any, *arrays: Array) -> Any:
        outer = Tape.current
        assert outer is not None
        ctx.save(layer, arrays, outer.fan_in, outer.observer)
        with Tape(
            ctx.position, outer.fan_in, strict=True, recording=False, observer=outer.observer
        ) as inner:
            outputs = layer(*map(inner.input, arrays))
        return tuple(y.array for y in outputs) if isinstance(outputs, tuple) else outputs.array

    @staticmethod
    def backward(ctx: Context, *grads: Array) -> Any:
        layer, arrays, fan_in, observer = ctx.saved
        observer.again(ctx.label)
        with Tape(ctx.position, fan_in, strict=True, observer=observer) as inner:
            outputs = layer(*map(inner.input, arrays))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
        return inner.backward([y for y, _ in pairs], [g for _, g in pairs])


def recompute(layer: Any, *inputs: Tensor) -> Any:
    """layer(*inputs), keeping only its inputs until backward."""
    if Tape.current is None or not Tape.current._recording:
        return layer(*inputs)
    return Recompute.apply(layer, *inputs, parameters=layer.parameters())
