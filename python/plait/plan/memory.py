"""Bytes per rank, from the layers' costs and the layout.

For P elements of parameters on a rank (its stage's, divided by the tensor size):
weights P w, gradients 4 P s, masters 4 P / z (bfloat16 only), optimizer state 4 P m / z, where w =
2 or 4 bytes, s = open gradient chains (Share.slots), m = arrays of optimizer state, z = data size
with ZeRO, else 1; with ZeRO 4 P / data more for the reduced gradient, which else takes the place of
the chains. Activations: A bytes a sample and stage, times microbatch, times microbatches in flight;
with recompute only each layer's input, and one layer's A.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from plait.comm.tree import Leaves
from plait.ops.position import Share
from plait.parallel.partition import Costs, stage_bounds

PROCESS = 90 << 20  # interpreter, numpy, MPI; measured


class Spec(Costs, Protocol):
    @property
    def output(self) -> int: ...


@dataclass(frozen=True)
class Request:
    """What memory depends on."""

    data: int
    tensor: int
    pipeline: int
    batch: int
    microbatch: int | None  # samples, or None: a data leaf's
    precision: str
    zero: int
    recompute: str
    grains: int  # data leaves
    state: int = 2  # float32 arrays of optimizer state
    schedule: str = "one_f_one_b"

    @property
    def layout(self) -> str:
        return f"{self.data}x{self.tensor}x{self.pipeline}"

    @property
    def ranks(self) -> int:
        return self.data * self.tensor * self.pipeline


@dataclass(frozen=True)
class Memory:
    """Bytes of the rank that needs most."""

    weights: int
    gradients: int
    masters: int
    state: int
    activations: int
    process: int = PROCESS

    @property
    def total(self) -> int:
        return (
            self.weights + self.gradients + self.masters + self.state + self.activations
            + self.process
        )  # fmt: skip


def memory(specs: Sequence[Spec], request: Request) -> Memory:
    """The needs of the stage that needs most."""
    bounds = stage_bounds(specs, request.pipeline, _share(request).usual)
    stages = [
        _stage(specs[a:b], request, stage)
        for stage, (a, b) in enumerate(itertools.pairwise(bounds))
    ]
    return max(stages, key=lambda m: m.total)


def _stage(specs: Sequence[Spec], r: Request, stage: int) -> Memory:
    width = 2 if r.precision == "bfloat16" else 4
    # A stage that holds a tied weight and its original keeps only gradients for the copy.
    copies = sum(spec.copies for spec in specs) // r.tensor
    p = -(-sum(spec.parameters for spec in specs) // r.tensor) + (0 if stage == 0 else copies)
    share = _share(r)
    cut = r.data if r.zero else 1
    in_flight = len(share.microbatches(0, 0))
    if r.schedule == "one_f_one_b":
        in_flight = min(in_flight, r.pipeline - stage)
    samples = share.largest
    kept = sum(spec.activation for spec in specs)
    if r.recompute == "layer":
        kept = sum(spec.output for spec in specs) * in_flight
        kept += max(spec.activation for spec in specs)
    else:
        kept *= in_flight
    reduced = 4 * p // r.data if r.zero and r.data > 1 else 0  # else where the chains are
    return Memory(
        weights=width * p,
        gradients=4 * (p + (copies if stage == 0 else 0)) * share.slots + reduced,
        masters=4 * p // cut if width == 2 else 0,
        state=4 * p * r.state // cut,
        activations=kept * samples * width // r.tensor,
    )


def _share(r: Request) -> Share:
    return Share(r.batch, Leaves.even(max(r.grains, r.data), r.data), 0, r.microbatch)


def fits(specs: Sequence[Spec], request: Request, limit: int) -> bool:
    return memory(specs, request).total <= limit


def smallest_change(
    specs: Sequence[Spec], request: Request, limit: Callable[[Request], int]
) -> str | None:
    """The first of a list of changes, cheapest first, after which a rank needs at most what `limit`
    says in bytes; 0 where the change would be refused."""
    for text, changed in _changes(request, len(specs)):
        try:
            if fits(specs, changed, limit(changed)):
                return text
        except ValueError:
            continue
    return None


def _changes(r: Request, layers: int) -> Iterator[tuple[str, Request]]:
    if r.data > 1 and not r.zero:
        yield "layout.zero = 1", replace(r, zero=1)
    size = _share(r).largest
    while size > 1:
        size //= 2
        yield f"train.microbatch = {size}", replace(r, microbatch=size)
    if r.recompute == "none":
        yield 'train.recompute = "layer"', replace(r, recompute="layer")
    for factor in (2, 4, 8, 16, 32, 64):
        candidates = [
            replace(r, tensor=r.tensor * factor),
            replace(r, pipeline=r.pipeline * factor),
            replace(r, data=r.data * factor, zero=1, grains=max(r.grains, r.data * factor)),
        ]
        for c in candidates:
            zero = " and layout.zero = 1" if c.zero > r.zero else ""
            if c.pipeline <= layers and c.data <= c.batch:
                yield f'layout = "{c.layout}"{zero}, on {c.ranks} ranks', c


__all__ = ["Memory", "Request", "fits", "memory", "smallest_change"]
