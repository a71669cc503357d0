"""Which backend the ranks of a run take, agreed among them."""

from __future__ import annotations

import socket
from typing import Literal

from plait import backend
from plait.comm import Communicator
from plait.errors import UserError

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
