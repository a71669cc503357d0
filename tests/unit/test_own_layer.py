"""The example's own ops against finite differences, and its config as plait reads it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.autograd import Tape
from plait.backend import float32
from plait.comm.alone import Alone
from plait.nn import Build, Parameter
from plait.ops.position import Share
from plait.train.build import build_dataset, build_model
from plait.train.config import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import own_layer  # noqa: E402

B, S, C = 3, 4, 5


def slope(f: Callable[[], float], array: np.ndarray, index: Any) -> float:
    """The central difference of f in one element of array."""
    before, step = array[index], 1e-2
    array[index] = before + step
    high = f()
    array[index] = before - step
    low = f()
    array[index] = before
    return (high - low) / (2 * step)


def vector(make: Any) -> Parameter:
    p: Parameter = make
    p.array = np.random.default_rng(1).uniform(0.5, 1.5, p.local_shape).astype(float32)
    p.array[1] *= -1
    return p


@pytest.mark.parametrize("name", ["Squash", "Scale"])
def test_gradients_are_finite_differences(name: str) -> None:
    comm = Alone()
    build = Build(comm, "test")
    split = name == "Squash"
    p = vector(build.split("p", (C,)) if split else build.constant("p", C, 1.0))
    random = np.random.default_rng(2)
    x, weights = (random.standard_normal((B, S, C)).astype(float32) for _ in range(2))
    share = Share(B, comm.leaves, 0, B)
    (position,) = share.microbatches(0, 0)
    p.grads = np.zeros((share.slots, *(() if split else (1,)), *p.local_shape), float32)
    op = getattr(own_layer, name)
    more = () if split else (comm,)

    def value() -> float:
        with Tape(position, recording=False) as tape:
            y = op.apply(tape.input(x), p, *more).array
        return float((y.astype(np.float64) * weights).sum())

    with Tape(position) as tape:
        y = op.apply(tape.input(x), p, *more)
    (grad_x,) = tape.backward(y, weights)
    for index in np.ndindex(x.shape):
        assert abs(slope(value, x, index) - grad_x[index]) < 2e-3, index
    grad = p.grads[0].reshape(-1)
    for channel in range(C):
        assert abs(slope(value, p.array, channel) - grad[channel]) < 2e-3, channel


def test_the_config_builds_the_model() -> None:
    config = load(EXAMPLES / "own_layer.toml")
    dataset = build_dataset(config)
    dataset.prepare()
    specs = build_model(config, dataset)
    built = [spec.build(Build(Alone(), spec.name, i)) for i, spec in enumerate(specs)]
    for spec, layer in zip(specs, built, strict=True):
        count = sum(int(np.prod(p.shape)) for p in layer.parameters())
        assert spec.parameters == count, spec.name
