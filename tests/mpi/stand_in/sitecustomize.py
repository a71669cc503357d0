"""Stands in for the trainer in tests of launching: `plait train` runs what a config file asks for.

Loaded by every Python that has this folder on PYTHONPATH; a config is lines of `what=value`.
"""

import os
import signal
import sys
import threading
import types
from pathlib import Path
from typing import Any


def load(path: Path, overrides: Any = ()) -> dict[str, str]:
    from plait.errors import UserError

    pairs = [*path.read_text().split(), *overrides]
    found = dict(pair.split("=", 1) for pair in pairs)
    if "unknown" in found:
        raise UserError("unknown key 'unknown'; did you mean 'known'?")
    return found


def train(config: dict[str, str], *, fresh: bool, other_bits: bool, stop: Any) -> int:
    import numpy as np

    from plait.comm.choose import communicator
    from plait.comm.launcher import launcher
    from plait.errors import UserError
    from plait.job.world import mpi_world

    comm = communicator(mpi_world()) if launcher().launched else None
    rank, size = (comm.rank, comm.size) if comm else (0, 1)
    if "shared" in config:
        lines = Path("/proc/self/maps").read_text().splitlines()
        names = {line.split()[5] for line in lines if "/dev/shm/" in line}
        (Path(config["shared"]) / f"shared.{rank}").write_text("\n".join(names))
    here = rank in [int(r) for r in config.get("on", "0").split(",")]
    what = config.get("do", "")
    if comm:
        comm.barrier()
    if what == "raise" and here:
        raise RuntimeError(f"rank {rank} has had enough")
    if what == "raise-in-thread" and here:
        threading.Thread(target=lambda: 1 // 0).start()
    if what == "user-error" and here:
        raise UserError("batch = 15 does not divide; batch = 16 does")
    if what == "kill" and here:
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("raise", "raise-in-thread", "user-error", "kill"):
        while comm:  # the others wait in a collective, as they would
            comm.barrier()
    if what == "steps":
        print(f"ready {rank}", flush=True)
        while True:
            asked = np.array([int(stop())])
            if int((comm.all_reduce(asked, op="max") if comm else asked)[0]):
                print(f"saved {rank}", flush=True)
                (Path(config["shared"]) / f"saved.{rank}").touch()
                return 75
    if what == "deadlock":
        print(f"ready {rank}", flush=True)
        while comm:
            comm.recv(np.empty(1), (rank + 1) % size)
    if what == "terminal":
        from plait.report import Progress, Screen

        screen = Screen(active=rank == 0)
        with Progress(screen, 3) as progress:
            for step in (1, 2, 3):
                progress.step(step, loss=1.0, rate=2.0, memory_bytes=3)
    if rank == 0:
        print(f"done on {size} fresh={fresh} threads={len(os.sched_getaffinity(0))}", flush=True)
    return int(config.get("code", "0"))


def rehearse(config: dict[str, str], ranks: int | None) -> None:
    print("MPI started" if "mpi4py.MPI" in sys.modules else "no MPI")
    print(f"dry run of {config} on {ranks}")


def evaluate(run: Path) -> None:
    print(f"evaluated {run}")


def generate(run: Path, prompt: str, tokens: int, temperature: float, seed: int) -> None:
    print(run, repr(prompt), tokens, temperature, seed)


if "PLAIT_RANKS" in os.environ and "SAY_STARTING" in os.environ:
    os.write(1, b"starting\n")  # long before MPI, or plait, is there


def stand_in(name: str, **functions: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(functions)
    sys.modules[name] = module


stand_in("plait.train.config", load=load)
stand_in(
    "plait.train.checks",
    check_folder=lambda config: None,
    check_layout=lambda config, ranks: None,
)
stand_in("plait.train.dry_run", rehearse=rehearse)
stand_in("plait.train.run", train=train, evaluate=evaluate, generate=generate)
