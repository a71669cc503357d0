"""How a step is run, checked."""

from __future__ import annotations

from dataclasses import dataclass

from plait.backend import PRECISIONS
from plait.parallel.schedule import SCHEDULES


@dataclass(frozen=True)
class Settings:
    """How a step is run; sizes are in samples, over all replicas unless said."""

    batch: int
    microbatch: int | None  # of one replica; None: one of each data leaf
    precision: str = "bfloat16"
    zero: int = 0
    seed: int = 0
    clip: float | None = None
    recompute: str = "none"
    schedule: str = "one_f_one_b"
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("precision", tuple(PRECISIONS)),
            ("recompute", ("none", "layer")),
            ("schedule", tuple(SCHEDULES)),
            ("zero", (0, 1)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be {' or '.join(map(repr, allowed))}, got {getattr(self, name)!r}"
                )
        for name, low in (("microbatch", 1), ("seed", 0)):
            value = getattr(self, name)
            if not (name == "microbatch" and value is None) and (
                not isinstance(value, int) or value < low
            ):
                raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip!r}")
