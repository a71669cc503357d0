"""Compares a model on a mesh with the golden values that tests/golden/make_gpt2.py wrote."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from engines import Array, Keep, gradients

from plait import models
from plait.mesh import Mesh
from plait.ops.position import Position
from plait.train.engine import Engine, Settings

BOUND = 1e-4  # of each tensor's largest entry
HEAD, TOKENS = "output.head.weight", "embed.tokens.weight"


@dataclass(frozen=True)
class Golden:
    """Arrays by plait's parameter names; the tied head's are those of the token embedding."""

    tokens: Array
    targets: Array
    logits: Array
    loss: float
    weights: dict[str, Array]
    gradients: dict[str, Array]


@cache
def load() -> Golden:
    with np.load(Path(__file__).parents[1] / "golden" / "gpt2.npz") as file:
        found = dict(file)
    by_kind: dict[str, dict[str, Array]] = {"weight": {}, "gradient": {}}
    for key, array in found.items():
        kind, _, name = key.partition("/")
        if name:
            by_kind[kind][name] = array
    for arrays in by_kind.values():
        arrays[HEAD] = arrays[TOKENS]
    return Golden(
        found["tokens"], found["targets"], found["logits"], float(found["loss"]),
        by_kind["weight"], by_kind["gradient"],
    )  # fmt: skip


def set_weights(engine: Engine, weights: dict[str, Array]) -> None:
    wanted, finish = engine.to_load()
    for kind, span, array in wanted:
        if kind == "master":
            flat = weights[span.parameter.name].ravel()
            array[:] = flat[span.global_start : span.global_start + len(array)]
    finish()


def compare(name: str, found: Array, expected: Array) -> None:
    """Within BOUND of the largest entry of what is expected."""
    assert found.shape == expected.shape, f"{name}: {found.shape}, expected {expected.shape}"
    worst, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    assert worst <= BOUND * largest, f"{name} is off by {worst}, its largest entry is {largest}"


def check_gpt2(mesh: Mesh, **settings: Any) -> None:
    """Loss and logits on every rank that has them, gradients on world rank 0."""
    golden = load()
    length, vocabulary = golden.logits.shape[1:]
    specs = models.gpt(
        layers=2, hidden_dim=32, heads=4, vocabulary=vocabulary, sequence_length=length
    )
    samples = len(golden.tokens)
    changes = {"batch": samples, "microbatch": samples, "precision": "float32", **settings}
    engine = Engine(specs, mesh, Keep(), Settings(**changes))
    set_weights(engine, golden.weights)
    logits = engine.logits(Position(0, 0, samples, False), golden.tokens)
    if logits is not None:
        compare("logits", logits, golden.logits)
    mine = slice(engine.share.start, engine.share.stop)
    result = engine.step(0, 0.0, golden.tokens[mine], golden.targets[mine])
    assert abs(result.loss - golden.loss) <= BOUND * abs(golden.loss), (result, golden.loss)
    assert result.targets == np.count_nonzero(golden.targets >= 0)
    found = gradients(engine, mesh.world)
    if found is not None:
        assert found.keys() == golden.gradients.keys()
        for name, expected in golden.gradients.items():
            compare(f"gradient of {name}", found[name].reshape(expected.shape), expected)
