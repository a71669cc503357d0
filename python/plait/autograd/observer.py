"""Who listens in on a step: `plait verify` compares what it hears at one layout with another."""

from __future__ import annotations

from typing import Any


class Observer:
    """Hears what a step computes, in the order of execution. Here every method does nothing.

    Each call of a Function has a label, whatever forward() returned for it. hears_chains: kernels
    that would merge leaves themselves leave that to others, so that each is heard.
    """

    hears_chains = False

    def step(self, step: int, inputs: Any, targets: Any) -> None:
        """A step begins, on this replica's samples."""

    def layer(self, name: str) -> None:
        """What is called from here on belongs to this layer."""

    def forward(
        self, function: str, position: Any, parameters: tuple[Any, ...], outputs: tuple[Any, ...]
    ) -> Any:
        """A Function was called; outputs: its arrays. Returns the call's label."""

    def again(self, label: Any) -> None:
        """The layer that call belongs to runs once more, from its first op, for backward."""

    def backward(self, label: Any) -> None:
        """The backward of that call begins."""

    def gradients(self, label: Any, position: Any, gradients: tuple[Any, ...]) -> None:
        """What it gave for the call's inputs: an array or None for each."""

    def chain(self, parameter: Any, position: Any, segment: Any) -> None:
        """A parameter's chain of gradients has taken in one more segment of samples."""

    def merged(self, parameter: Any, position: Any, segment: Any, slot: int) -> None:
        """That segment ended a leaf, whose chain went into the tree node that lies in this slot."""

    def ready(self, parameter: Any) -> None:
        """The last microbatch's gradient of this parameter is there."""

    def started(self, bucket: int) -> None:
        """The reduction of this bucket begins."""

    def reduced(self) -> None:
        """All gradients are reduced; the update has not begun."""

    def updated(self) -> None:
        """Weights and optimizer state are those of the next step."""

    def replaced(self) -> None:
        """Weights or optimizer state were set to something else, as from a checkpoint."""


SILENT = Observer()
