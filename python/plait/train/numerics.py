"""What decides the bits of a run besides its config, and whether a checkpoint goes on with it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from plait import backend
from plait.backend.host import kernels
from plait.comm import Communicator
from plait.comm.tree import Leaves
from plait.mesh import Mesh
from plait.nn import LayerSpec
from plait.ops.position import Share

# Goes up with every change of plait that gives the same run other bits, auto grains included;
# tests/unit/test_numerics_version.py has digests that tell.
NUMERICS_VERSION = 3
PATHS = ("portable", "avx2", "avx512", "avx512_bf16", "amx_bf16")


def agree_on_instructions(world: Communicator) -> str:
    """Every rank takes the least instruction path of all, so that bits agree. Returns its name, and
    where ranks had others, who had no more. Collective."""
    own = kernels.isa()
    everyone = world.all_gather_object((PATHS.index(own), socket.gethostname()))
    level, host = min(everyone)
    kernels.set_isa(PATHS[level])
    if max(everyone)[0] == level:
        return PATHS[level]
    rank = everyone.index((level, host))
    return f"{PATHS[level]}, for rank {rank} on host {host} has no more"


def identity(
    mesh: Mesh, layers: list[LayerSpec], batch: int, microbatch: int | None, precision: str
) -> dict[str, Any]:
    """Two runs of one config have the same bits if these are equal; JSON. Of instruction paths only
    AMX is in it, and only for bfloat16: the others round alike."""
    found = {
        "numerics version": NUMERICS_VERSION,
        "backend": backend.name(),
        "grains": f"{mesh.grains['data']} x {mesh.grains['tensor']}",
    }
    if precision == "bfloat16" and backend.name() == "cpu":
        amx = kernels.isa().startswith("amx_bf16")
        found["bfloat16 products"] = "in blocks (amx_bf16)" if amx else "in pairs"
    if any(spec.mixes_samples for spec in layers):
        found["microbatches"] = microbatches(batch, mesh.data.leaves, microbatch)
    return found


def microbatches(batch: int, leaves: Leaves, microbatch: int | None) -> str:
    """What a step's samples are cut into, such as "2 of 3, 1 of 2"."""
    shares = (Share(batch, leaves, rank, microbatch) for rank in range(len(leaves.bounds) - 1))
    sizes = [p.count for share in shares for p in share.microbatches(0, 0)]
    runs = [(size, len(list(same))) for size, same in groupby(sizes)]
    return ", ".join(f"{count} of {size}" for size, count in runs)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, such as "grains 8 x 2, here 4 x 1"; what was not noted before is left out."""
    return [
        f"{what} {value}, here {now[what]}"
        for what, value in before.items()
        if what in now and now[what] != value
    ]
