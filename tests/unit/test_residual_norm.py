"""Norms of a residual stream: the layers' second form gives the bits of Add and the norm, forward
and backward, whichever of its outputs are used; and its gradients are finite differences."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from kernel_checks import STORAGE, bits, random

from plait import nn
from plait.autograd import Tape, Tensor, recompute
from plait.backend import Array, float32
from plait.comm import Leaves
from plait.comm.alone import Alone
from plait.nn import Build
from plait.ops import Add, fan_in
from plait.ops.position import Share

SAMPLES, LENGTH, CHANNELS, LEAVES = 5, 7, 33, 2
NORMS = [nn.LayerNorm, nn.RMSNorm]
Form = Callable[[Any, Tensor, Tensor | None], tuple[Tensor, Tensor]]

every_norm = pytest.mark.parametrize("norm", NORMS)
two_or_one = pytest.mark.parametrize("two", [True, False], ids=["x + y", "x"])


def fused(norm: Any, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    stream, normed = norm.residual(x, y)
    return stream, normed


def apart(norm: Any, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    stream = x if y is None else Add.apply(x, y)
    return stream, norm(stream)


def layer(norm: Any, dtype: Any = float32) -> Any:
    made = norm(Build(Alone().with_leaves(Leaves.even(LEAVES, 1))), CHANNELS)
    for seed, p in enumerate(made.parameters()):
        p.array = random((CHANNELS,), dtype, seed)
        p.grads = np.full((2, LEAVES, CHANNELS), np.nan, float32)
    return made


def microbatches() -> Iterator[Any]:
    """Three data leaves in microbatches of two samples: leaves end within and across them."""
    yield from Share(SAMPLES, Leaves.even(3, 1), 0, 2).microbatches(0, 0)


def values(dtype: Any) -> list[Array]:
    return [random((SAMPLES, LENGTH, CHANNELS), dtype, seed, 2) for seed in range(4)]


def trained(
    form: Form, norm: Any, dtype: Any, two: bool, used: tuple[bool, bool], again: bool = False
) -> list[bytes]:
    """Outputs, gradients of inputs and of the parameters. used: stream, norm."""
    made, found = layer(norm, dtype), []

    def call(x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return form(made, x, y)

    call.parameters = made.parameters  # type: ignore[attr-defined]
    x, y, *grads = values(dtype)
    for position in microbatches():
        where = slice(position.first_sample, position.first_sample + position.count)
        with Tape(position, fan_in) as tape:
            inputs = [tape.input(a[where]) for a in ((x, y) if two else (x,))]
            outputs = recompute(call, *inputs) if again else call(*inputs)
        found += [bits(out.array) for out in outputs]
        given = [(out, g[where]) for out, g, use in zip(outputs, grads, used, strict=True) if use]
        before = [bits(g) for g in grads]
        result = tape.backward([out for out, _ in given], [g for _, g in given])
        assert [bits(g) for g in grads] == before  # nothing is written over them
        assert all(g is not None for g in result)
        found += [bits(g) for g in result]  # type: ignore[arg-type]
        for p in made.parameters():
            p.skip(position)
    return found + [bits(p.grads[0]) for p in made.parameters()]


@every_norm
@two_or_one
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)], ids=str)
def test_fused_is_apart(norm: Any, two: bool, dtype: Any, used: tuple[bool, bool]) -> None:
    assert trained(fused, norm, dtype, two, used) == trained(apart, norm, dtype, two, used)


@every_norm
@two_or_one
def test_recomputed(norm: Any, two: bool) -> None:
    for used in ((True, True), (True, False), (False, True)):
        once = trained(fused, norm, float32, two, used)
        assert trained(fused, norm, float32, two, used, again=True) == once


@every_norm
def test_a_stream_of_one_is_its_input(norm: Any) -> None:
    with Tape(next(microbatches())) as tape:
        x = tape.input(values(float32)[0][:2])
        stream, normed = layer(norm).residual(x)
    assert stream.array is x.array
    assert normed.array is not x.array


@every_norm
@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_epsilon(norm: Any, epsilon: float) -> None:
    made = norm(Build(Alone()), CHANNELS, epsilon=epsilon)
    for p, value in zip(made.parameters(), (1, 0)):
        p.array = np.full(CHANNELS, value, float32)
    x = values(float32)[0].astype(float)
    away = x - x.mean(-1, keepdims=True) * (norm is nn.LayerNorm)
    want = away / np.sqrt((away**2).mean(-1, keepdims=True) + epsilon)
    with Tape(next(microbatches()), recording=False) as tape:
        found = made(tape.input(values(float32)[0]))
    np.testing.assert_allclose(found.array, want, rtol=1e-4, atol=1e-5)


@every_norm
def test_gradients_are_finite_differences(norm: Any) -> None:
    x, y, *grads = (a[:2] for a in values(float32))
    made, position = layer(norm), next(microbatches())

    def value() -> float:
        with Tape(position, recording=False) as tape:
            outputs = made.residual(tape.input(x), tape.input(y))
        pairs = zip(outputs, grads, strict=True)
        return float(sum((out.array.astype(float) * g).sum() for out, g in pairs))

    with Tape(position, fan_in) as tape:
        inputs = tape.input(x), tape.input(y)
        outputs = made.residual(*inputs)
    found = tape.backward(outputs, grads)
    assert bits(found[0]) == bits(found[1])  # type: ignore[arg-type]
    for array, grad in zip((x, y), found, strict=True):
        assert grad is not None
        for where in ((0, 0, 0), (1, 3, 17), (1, 6, 32)):
            step, before = 1e-2, array[where]
            ends = []
            for array[where] in (before + step, before - step):
                ends.append(value())
            array[where] = before
            slope = (ends[0] - ends[1]) / (2 * step)
            assert slope == pytest.approx(float(grad[where]), rel=2e-2, abs=2e-2)
