"""Whether all ranks mean the same call: compared before any of them waits for another."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from plait.comm.communicator import Communicator


def agree(name: str, comm: Communicator, problem: str, same: dict[str, Any]) -> None:
    """ValueError on every rank if one of them has a problem, or if they differ in what should be
    the same; it says what, and who."""
    if comm.size > 1:
        said = ", ".join(f"{key} {value}" for key, value in same.items())
        mine = np.array([bool(problem), zlib.crc32(said.encode())], np.int64)
        every = comm.all_gather(mine).reshape(comm.size, 2)
        if (every != every[0]).any() or every[0, 0]:
            told = comm.all_gather_object((problem, said))
            for rank, (theirs, other) in enumerate(told):
                if not problem and theirs:
                    problem = f"rank {rank} refuses its arguments: {theirs}"
                elif not problem and other != said:
                    problem = f"rank {comm.rank} has {said}, rank {rank} {other}"
    if problem:
        raise ValueError(f"{name}: {problem}")
