"""Which layers a pipeline stage gets: contiguous runs that make the slowest stage as fast as
possible."""

from __future__ import annotations

from collections.abc import Sequence


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
