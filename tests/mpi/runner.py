"""One rank of a run of cases: runner.py CASES FOLDER NAME..., started by harness.py."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import harness
from mpi4py import MPI

from plait.comm.choose import communicator
from plait.comm.communicator import Communicator


def main(source: Path, folder: Path, names: list[str]) -> None:
    comm = MPI.COMM_WORLD
    world = communicator(comm)
    opened: list[Communicator] = []
    remember(opened)
    by_name = {c.name: c for c in harness.load_cases(source) if c.ranks == comm.size}
    events = (folder / f"events.{comm.rank}").open("w", buffering=1)
    stack = (folder / f"stack.{comm.rank}").open("w")
    faulthandler.enable(stack)

    def tell(event: str, name: str, **more: Any) -> None:
        events.write(json.dumps({"event": event, "case": name, **more}) + "\n")

    for name in names:
        case = by_name[name]
        start = time.perf_counter()
        tell("started", name)
        faulthandler.dump_traceback_later(case.limit, exit=True, file=stack)
        try:
            world.reset_tally()
            case.function(world)
            comm.Barrier()  # not of world: a case that left one rank in its barrier must hang
        except BaseException:
            tell("failed", name, traceback=traceback.format_exc())
            comm.Abort(3)
            os._exit(3)  # Abort may return where another rank aborts too: the case has not passed
        faulthandler.cancel_dump_traceback_later()
        # Communicators are few in MPI: give this case's back, in one order on all ranks.
        while opened:
            opened.pop().close()
        tell("passed", name, seconds=round(time.perf_counter() - start, 3))


def remember(opened: list[Communicator]) -> None:
    """Notes every communicator that a case makes."""
    initialise = Communicator.__init__

    def noting(self: Communicator, *arguments: Any, **more: Any) -> None:
        initialise(self, *arguments, **more)
        if not harness.keeping:
            opened.append(self)

    Communicator.__init__ = noting  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
