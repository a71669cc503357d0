"""Optimizers as settings: what state each element has, and the one-pass kernel that updates it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from plait.backend import Array, kernels


class Optimizer(Protocol):
    """state: the names of the float32 arrays kept per element."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def state(self) -> tuple[str, ...]: ...

    def update(
        self, grad: Array, scale: float, learning_rate: float, decay: bool, step: int,
        master: Array, state: dict[str, Array], weight: Array,
    ) -> None: ...  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Loshchilov and Hutter (2019). Decay applies to every parameter of two or more axes."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    state: ClassVar[tuple[str, ...]] = ("first", "second")

    def __post_init__(self) -> None:
        _check("AdamW", "learning_rate", self.learning_rate, 0.0, math.inf)
        _check("AdamW", "epsilon", self.epsilon, 0.0, math.inf)
        _check("AdamW", "weight_decay", self.weight_decay, 0.0, math.inf)
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ValueError(f"AdamW: betas must be two numbers, got {self.betas!r}")
        for beta in self.betas:
            _check("AdamW", "betas", beta, 0.0, 1.0)

    def update(
        self, grad: Array, scale: float, learning_rate: float, decay: bool, step: int,
        master: Array, state: dict[str, Array], weight: Array,
    ) -> None:  # fmt: skip
        """One step over flat arrays; step counts from 1. weight gets the rounded master."""
        kernels.adamw(
            grad, *self.arguments(scale, learning_rate, decay, step, master, state), weight
        )

    def arguments(
        self, scale: float, learning_rate: float, decay: bool, step: int, master: Array,
        state: dict[str, Array],
    ) -> tuple[Any, ...]:  # fmt: skip
        """What the kernel is told besides gradients and weights."""
        return (
            scale, learning_rate, *self.betas, self.epsilon, self.weight_decay if decay else 0.0,
            step, master, state["first"], state["second"],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum (Polyak 1964)."""

    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0
    state: ClassVar[tuple[str, ...]] = ("momentum",)

    def __post_init__(self) -> None:
        _check("SGD", "learning_rate", self.learning_rate, 0.0, math.inf)
        _check("SGD", "momentum", self.momentum, 0.0, 1.0)
        _check("SGD", "weight_decay", self.weight_decay, 0.0, math.inf)

    def update(
        self, grad: Array, scale: float, learning_rate: float, decay: bool, step: int,
        master: Array, state: dict[str, Array], weight: Array,
    ) -> None:  # fmt: skip
        kernels.sgd(
            grad, scale, learning_rate, self.momentum, self.weight_decay if decay else 0.0, master,
            state["momentum"], weight,
        )  # fmt: skip


def _check(optimizer: str, name: str, value: object, low: float, below: float) -> None:
    if not isinstance(value, int | float) or not low <= value < below:
        limit = "" if below == math.inf else f" and below {below:g}"
        raise ValueError(
            f"{optimizer}: {name} must be a number of at least {low:g}{limit}, got {value!r}"
        )
