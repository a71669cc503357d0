"""Which layers a pipeline stage gets: contiguous runs that make the slowest stage as fast as
possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

# How many flops take as long as one element of memory: one that is kept for backward, or a weight
# in one microbatch, with its gradient and its share of the update. From the seconds of the layers
# of GPT, ViT and ResNet on one AVX-512 core. It is never timed: every rank, and every run, must cut
# alike.
ELEMENT = 128


class Costs(Protocol):
    """What of a LayerSpec counts here."""

    @property
    def parameters(self) -> int: ...
    @property
    def copies(self) -> int: ...
    @property
    def flops(self) -> int: ...
    @property
    def activation(self) -> int: ...


def stage_bounds(layers: Sequence[Costs], stages: int, samples: int) -> list[int]:
    """Bounds (stages + 1) of the stages' layers; samples: of a microbatch."""
    return partition([cost(layer, samples) for layer in layers], stages)


def cost(layer: Costs, samples: int) -> float:
    """Time of a sample, in forward flops. An embedding multiplies nothing, but its weights are as
    many as the head's; a layer's weights cost the same however few samples pass at once."""
    weights = layer.parameters + layer.copies
    # 1.0: layers that tell no costs are dealt out evenly
    return 1.0 + layer.flops + ELEMENT * (layer.activation + weights / samples)


def partition(costs: Sequence[float], stages: int) -> list[int]:
    """Bounds (stages + 1) of contiguous, non-empty runs of layers with the least greatest cost;
    among equals the one that gives earlier stages fewer. ValueError if there are fewer layers than
    stages."""
    n = len(costs)
    if n < stages:
        raise ValueError(
            f"layout.pipeline = {stages} needs at least as many layers, the model has {n}: "
            f"use at most {n} stages"
        )
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    # best[k][i]: least greatest cost of the first i layers in k stages, and the last cut
    best: list[list[tuple[float, int]]] = []
    best.append([(0.0 if i == 0 else float("inf"), 0) for i in range(n + 1)])
    for k in range(1, stages + 1):
        row = [(float("inf"), 0)] * (n + 1)
        for i in range(k, n + 1):
            before = best[k - 1]
            row[i] = min((max(before[j][0], prefix[i] - prefix[j]), j) for j in range(k - 1, i))
        best.append(row)
    bounds = [n]
    for k in range(stages, 0, -1):
        bounds.append(best[k][bounds[-1]][1])
    return bounds[::-1]
