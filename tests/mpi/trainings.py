"""What decides the bits of a small training: model, precision, sizes, steps. And its result as
bits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from engines import Array

from plait import data, models
from plait.data import Dataset
from plait.nn import LayerSpec

# Sizes are odd or no power of two; the samples are a prime, so that batches straddle epochs.
SAMPLES, GRAINS = 31, (8, 8)
GPT = {"hidden_dim": 72, "heads": 8, "vocabulary": 101, "sequence_length": 19, "dropout": 0.1}
RESNET: dict[str, Any] = {"input_shape": (17, 15, 3), "classes": 10, "width": 20}
VIT: dict[str, Any] = {
    "input_shape": (6, 10, 3), "classes": 10, "hidden_dim": 72, "heads": 8, "patch": 2,
    "dropout": 0.1,
}  # fmt: skip
MLP: dict[str, Any] = {"input_shape": (5, 7, 3), "classes": 10, "hidden_dim": 190}


@dataclass(frozen=True)
class Training:
    """sizes: of the GPT, other than above; layers: that a pipeline can cut, 4 or 8."""

    model: str
    precision: str
    layers: int = 4
    batch: int = 13
    steps: int = 20
    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def specs(self) -> list[LayerSpec]:
        deep = self.layers == 8
        if self.model == "gpt":
            return models.gpt(layers=6 if deep else 2, **{**GPT, **dict(self.sizes)})
        if self.model == "resnet":
            return models.resnet(blocks=(2, 2, 2) if deep else (1, 1), **RESNET)
        if self.model == "vit":
            return models.vit(layers=6 if deep else 2, **VIT)
        return models.mlp(layers=7 if deep else 3, **MLP)

    @property
    def samples(self) -> Dataset:
        return _samples(self.model, self.sizes)


@cache
def _samples(model: str, sizes: tuple[tuple[str, int], ...]) -> Dataset:
    """Random samples. One target of three is masked, and all of the first two samples'."""
    random = np.random.default_rng(9)
    if model == "gpt":
        known = {**GPT, **dict(sizes)}
        tokens = random.integers(0, known["vocabulary"], (SAMPLES, known["sequence_length"] + 1))
        targets: Array = np.where(random.random(tokens.shape) < 1 / 3, -1, tokens)[:, 1:]
        targets[:2] = -1
        found = data.arrays(tokens[:, :-1], targets)
    else:
        known = {"resnet": RESNET, "vit": VIT, "mlp": MLP}[model]
        x = random.standard_normal((SAMPLES, *known["input_shape"])).astype(np.float32)
        found = data.arrays(x, np.arange(SAMPLES) % known["classes"])
    found.prepare()
    return found


@dataclass(frozen=True)
class Bits:
    """(loss, gradient norm) of every step, each to the last bit; and the state at the end: the
    SHA-256 over masters, moments and running statistics in global order."""

    steps: tuple[tuple[str, str], ...]
    state: str

    def difference(self, other: Bits) -> str:
        """In words; empty if there is none."""
        if len(self.steps) != len(other.steps):
            return f"{len(self.steps)} steps, not {len(other.steps)}"
        for index, (got, expected) in enumerate(zip(self.steps, other.steps)):
            if got != expected:
                return f"step {index + 1} has (loss, norm) {got}, not {expected}"
        return "" if self.state == other.state else f"state {self.state}, not {other.state}"
