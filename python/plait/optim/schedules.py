"""Learning-rate schedules: the factor of the base rate at a step, linear warm-up first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """kind: constant, linear or cosine (down to `final` of the base rate, which the
    step after the last would have)."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    final: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """step counts from 0, `steps` is the length of the run."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.kind == "constant":
            return 1.0
        left = max(steps - self.warmup_steps, 1)
        done = min((step - self.warmup_steps) / left, 1.0)
        fall = done if self.kind == "linear" else (1 - math.cos(math.pi * done)) / 2
        return 1.0 - (1.0 - self.final) * fall


def constant(*, warmup_steps: int = 0) -> Schedule:
    return Schedule("constant", warmup_steps)


def linear(*, warmup_steps: int = 0, final: float = 0.0) -> Schedule:
    return Schedule("linear", warmup_steps, final)


def cosine(*, warmup_steps: int = 0, final: float = 0.1) -> Schedule:
    return Schedule("cosine", warmup_steps, final)
