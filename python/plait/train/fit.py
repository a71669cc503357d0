"""Whether grains hold a layout and are allowed by batch and heads; where not, which lines do.

Knows numbers only, so that a config can be refused before anything is loaded or started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import gcd


@dataclass(frozen=True)
class Plan:
    """What has to fit together. data, tensor, pipeline: of the layout; grains: (data, tensor)."""

    data: int
    tensor: int
    pipeline: int
    batch: int
    grains: tuple[int, int]

    @property
    def layout(self) -> str:
        return f"{self.data}x{self.tensor}x{self.pipeline}"


Heads = Iterable[tuple[str, int]]  # a layer's name, and what the tensor grains must divide


def misfit(plan: Plan, heads: Heads) -> str | None:
    """The first thing that does not fit."""
    data, tensor = plan.grains
    for name, size, count in (("data", plan.data, data), ("tensor", plan.tensor, tensor)):
        if size > count:
            return f"layout {plan.layout} has {name} size {size}, more than its {count} grains"
    if data > plan.batch:
        return f"{data} data grains are more than the {plan.batch} samples of a step"
    for name, count in heads:
        if count % tensor:
            return f"{tensor} tensor grains do not divide the {count} heads of {name}"
    return None


def nearest(plan: Plan, heads: Heads) -> Plan:
    """The plan with as little changed as makes it fit, on as many ranks: grains first, then the
    layout where heads forbid it, the batch where it has fewer samples than there are replicas."""
    units = gcd(*(count for _, count in heads))  # 0: the model takes any number
    if units and plan.tensor > units:
        ranks = plan.data * plan.tensor
        tensor = max(n for n in range(1, units + 1) if ranks % n == 0)
        plan = replace(plan, data=ranks // tensor, tensor=tensor)
    batch = max(plan.batch, plan.data)
    data = min(max(plan.grains[0], plan.data), batch)
    wanted = max(plan.grains[1], plan.tensor)
    allowed = [n for n in range(plan.tensor, units + 1) if units % n == 0] or [wanted]
    tensor = max((n for n in allowed if n <= wanted), default=allowed[0])
    return replace(plan, batch=batch, grains=(data, tensor))


def lines(before: Plan, after: Plan) -> str:
    """What to write in a config, or on the command line."""
    found = []
    if after.grains != before.grains:
        found.append("numerics.grains = {{data = {}, tensor = {}}}".format(*after.grains))
    if after.batch != before.batch:
        found.append(f"train.batch = {after.batch}")
    if after.layout != before.layout:
        found.append(f'layout = "{after.layout}"')
    return f"set {_listed(found)} (this changes the bits of the result)"


def arguments(before: Plan, after: Plan) -> str:
    """What to give Mesh and Trainer."""
    found = []
    if after.grains != before.grains:
        found.append(f"grains={after.grains}")
    if after.batch != before.batch:
        found.append(f"batch={after.batch}")
    if after.layout != before.layout:
        found.append(f"mesh=Mesh({after.data}, {after.tensor}, {after.pipeline})")
    return f"give {_listed(found)} (this changes the bits of the result)"


def _listed(found: list[str]) -> str:
    return " and ".join(f"`{line}`" for line in found)


def check(plan: Plan, heads: Heads, words: Callable[[Plan, Plan], str] = lines) -> None:
    """Raises ValueError with what does not fit, and what does in `words`."""
    heads = list(heads)
    if text := misfit(plan, heads):
        raise ValueError(f"{text}: {words(plan, nearest(plan, heads))}")
