"""Which backend the ranks of a run take, agreed among them, and which of them share a device."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plait import backend
from plait.comm import Communicator
from plait.errors import UserError
from plait.mesh import Layout
from plait.plan.memory import Request, Spec, memory
from plait.train.settings import Settings

Wanted = Literal["auto", "cpu", "cuda"]
CHOICES = ("auto", "cpu", "cuda")


def take_backend(wanted: Wanted, world: Communicator) -> str:
    """Takes the backend for this process; says what that is, such as "cuda (NVIDIA H200, device
    0)". Collective.

    "auto" is cuda where every rank has a device, else cpu; where there are devices that cannot be
    used, or that not all ranks have, the text says why. Rank r of a host takes visible device r
    modulo their number. UserError for "cuda" that some rank does not have, on every rank.
    """
    if wanted not in CHOICES:
        raise ValueError(f"backend must be {' or '.join(map(repr, CHOICES))}, got {wanted!r}")
    local_rank = world.nodes[: world.rank].count(world.nodes[world.rank])
    text, problem = "", "this plait was built for the CPU only"
    if wanted == "cuda" or (wanted == "auto" and backend.built()):
        try:
            text, problem = backend.use("cuda", local_rank), ""
        except UserError as error:
            problem = str(error)
    everyone = world.all_gather_object((problem, backend.built(), socket.gethostname()))
    if not any(problem for problem, _, _ in everyone):
        return text
    text = backend.use("cpu")
    if wanted == "cpu" or (wanted == "auto" and not any(built for _, built, _ in everyone)):
        return text
    rank, (problem, _, host) = next((r, each) for r, each in enumerate(everyone) if each[0])
    told = problem if world.size == 1 else f"rank {rank} on host {host}: {problem}"
    if wanted == "cuda":
        raise UserError(told)
    return f"{text}, not cuda: {told}"


@dataclass(frozen=True)
class Shares:
    """ranks: of those on one device, at the most; bytes: of device memory for a rank, at the least.
    0 on the CPU."""

    ranks: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        """What there is to say of it, after the backend's name."""
        return f", {self.ranks} ranks share one GPU" if self.ranks > 1 else ""


def device_shares(world: Communicator) -> Shares:
    """How the ranks share devices, which they know by their identity: a launcher may show each
    rank its own one as number 0. Collective."""
    if backend.name() == "cpu":  # on every rank
        return Shares()
    own = socket.gethostname(), backend.device_identity(), backend.device_limit()
    everyone = world.all_gather_object(own)
    ranks = Counter((host, identity) for host, identity, _ in everyone)
    least = min(limit // ranks[host, identity] for host, identity, limit in everyone)
    return Shares(max(ranks.values()), least)


def shared_room(specs: Sequence[Spec], layout: Layout, settings: Settings, grains: int) -> int:
    """Bytes of a rank's arrays that its peers read or write: gradients, with ZeRO weights too, the
    few activations under way, and what tensor ranks add up to, the residual stream, which each has
    whole: a ninth of a transformer's activations. What there is no room for is copied instead."""
    found = memory(
        specs,
        Request(
            data=layout.data,
            tensor=layout.tensor,
            pipeline=layout.pipeline,
            batch=settings.batch,
            microbatch=settings.microbatch,
            precision=settings.precision,
            zero=settings.zero,
            recompute=settings.recompute,
            grains=grains,
            schedule=settings.schedule,
        ),
    )
    kept = found.gradients + (found.weights if settings.zero else 0)
    summed = layout.tensor if layout.tensor > 1 and not settings.sequence_parallel else 0
    return int(kept * 1.05) + found.activations * (1 + summed) // 8 + (1 << 20)
