"""Optimizers as settings: what state each element has, and the one-pass kernel that updates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

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

    def update(
        self, grad: Array, scale: float, learning_rate: float, decay: bool, step: int,
        master: Array, state: dict[str, Array], weight: Array,
    ) -> None:  # fmt: skip
        """One step over flat arrays; step counts from 1. weight gets the rounded master."""
        kernels.adamw(
            grad, scale, learning_rate, *self.betas, self.epsilon,
            self.weight_decay if decay else 0.0, step, master, state["first"], state["second"],
            weight,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum (Polyak 1964)."""

    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0
    state: ClassVar[tuple[str, ...]] = ("momentum",)

    def update(
        self, grad: Array, scale: float, learning_rate: float, decay: bool, step: int,
        master: Array, state: dict[str, Array], weight: Array,
    ) -> None:  # fmt: skip
        kernels.sgd(
            grad, scale, learning_rate, self.momentum, self.weight_decay if decay else 0.0, master,
            state["momentum"], weight,
        )  # fmt: skip
