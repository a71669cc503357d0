"""What a step and an evaluation give, and the error of a step that gives no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from plait.errors import UserError
from plait.train.engine import StepResult


@dataclass(frozen=True)
class Step:
    """What one step did. loss is the mean over the batch's targets; times in seconds; exposed
    communication is what this rank spent on collectives, sends and receives instead of computing,
    waiting for others included; memory is the peak resident size of this process in bytes; `unit`
    says what `rate` counts: tokens or samples a second."""

    index: int
    loss: float
    grad_norm: float
    learning_rate: float
    step_seconds: float
    rate: float
    unit: Literal["tokens", "samples"]
    memory_bytes: int
    exposed_communication_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.rate

    @property
    def samples_per_second(self) -> float:
        return self.rate

    def row(self) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        return {
            "step": self.index,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            f"{self.unit}_per_second": self.rate,
            "step_seconds": self.step_seconds,
            "exposed_communication_seconds": self.exposed_communication_seconds,
            "memory_bytes": self.memory_bytes,
        }


@dataclass(frozen=True)
class Evaluation:
    """Means over the targets of the samples seen. bits_per_byte is None where data has no bytes."""

    loss: float
    accuracy: float
    samples: int
    bits_per_byte: float | None = None


class NotFinite(UserError):
    """result: of the step whose loss or gradient norm is not finite."""

    def __init__(self, text: str, result: StepResult):
        super().__init__(text)
        self.result = result
