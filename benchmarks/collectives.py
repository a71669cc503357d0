"""All-reduce of float32 between ranks of one node: plait, MPI libraries and DeepSpeed in turn.

python benchmarks/collectives.py [--mpi NAME=PYTHON ...] [--deepspeed PYTHON] [--ranks 2]
                                 [--rounds 5] [--json FILE]

Each PYTHON is another environment's: one with mpi4py and an MPI wheel, or one with torch and
deepspeed (`pip install --no-deps deepspeed`, whose shared-memory all-reduce is compiled). Every
rank has a core of its own where there are enough, rewrites its array before each call, and takes
part in a barrier, so that the time holds no work but the collective's. Prints microseconds (median
over calls and rounds, of the slowest rank) and how many times as fast plait is as the best peer
(median of the rounds, and range): by a plan on an array of comm.empty, by a plan on any array, and
by calls of comm.all_reduce on any array.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from turns import Side, serve

SIZES = [1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26]
WAYS = ("arena", "any", "call")  # of plait: planned from comm.empty or from any array; called


def measure(
    x: Any, all_reduce: Callable[[], Any], barrier: Callable[[], Any], reps: int
) -> list[float]:
    """Microseconds of each call on this rank."""
    found = []
    for index in range(reps):
        x.fill(index % 7 + 1)
        barrier()
        begin = time.perf_counter()
        all_reduce()
        found.append(1e6 * (time.perf_counter() - begin))
    return found


def slowest(gather: Callable[[list[float]], Any], found: list[float]) -> float:
    """The median over calls of the slowest rank's time."""
    return statistics.median(map(max, zip(*gather(found), strict=True)))


def reps(size: int) -> int:
    return max(8, min(300, (64 << 20) // size))


def pin(rank: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})


def plait_worker() -> None:
    import numpy as np
    from mpi4py import MPI

    import plait

    world = MPI.COMM_WORLD
    pin(world.rank)
    comm = plait.communicator(world)
    arrays: dict[tuple[str, int], Any] = {}
    for size in SIZES:
        arrays["arena", size] = comm.empty(size // 4)
        arrays["any", size] = arrays["call", size] = np.empty(size // 4, np.float32)
    found: dict[str, float] = {}

    def step() -> None:
        for (way, size), x in arrays.items():
            call = comm.plan("all_reduce", x, out=x)
            if way == "call":
                call = partial(comm.all_reduce, x, out=x)
            times = measure(x, call, comm.barrier, reps(size))
            found[f"{way} {size}"] = slowest(world.allgather, times)

    serve(world.rank, step, lambda: {"us": found})


def mpi_worker() -> None:
    import numpy as np
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    pin(world.rank)
    arrays = {size: np.empty(size // 4, np.float32) for size in SIZES}
    found: dict[str, float] = {}

    def step() -> None:
        for size, x in arrays.items():
            buffer = [x, MPI.FLOAT]
            call = partial(world.Allreduce, MPI.IN_PLACE, buffer)
            times = measure(x, call, world.Barrier, reps(size))
            found[f"any {size}"] = slowest(world.allgather, times)

    serve(world.rank, step, lambda: {"us": found})


def sides(a: argparse.Namespace) -> dict[str, Side]:
    from plait.launch.mpi import mpiexec

    def command(launcher: str, python: str, worker: str) -> list[str]:
        return [launcher, "-n", str(a.ranks), python, "-m", "mpi4py", __file__, "--worker", worker]

    found = {"plait": Side(command(str(mpiexec()), sys.executable, "plait"), a.ranks)}
    rootly = {f"OMPI_{key}": "1" for key in ("ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM")}
    for name, python in (pair.split("=", 1) for pair in a.mpi):
        launcher = str(Path(python).with_name("mpiexec"))
        found[name] = Side(command(launcher, python, "mpi"), a.ranks, rootly)
    if a.deepspeed:
        peer = str(Path(__file__).with_name("peers") / "deepspeed_all_reduce.py")
        found["deepspeed"] = Side([a.deepspeed, peer, str(a.ranks)], a.ranks)
    return found


def report(size: int, runs: dict[str, list[dict[str, float]]]) -> tuple[str, dict[str, float]]:
    """A line for one size, and plait's median ratios by way."""
    peers = {n: [r[f"any {size}"] for r in rows] for n, rows in runs.items() if n != "plait"}
    text, ratios = f"{size:9d} B", {}
    for name, times in peers.items():
        text += f"  {name} {statistics.median(times):9.1f}"
    for way in WAYS:
        own = [row[f"{way} {size}"] for row in runs["plait"]]
        text += f"  | {way} {statistics.median(own):8.1f}"
        if peers:
            best = min(peers.values(), key=statistics.median)
            times = [theirs / mine for theirs, mine in zip(best, own, strict=True)]
            ratios[way] = statistics.median(times)
            text += f" {ratios[way]:5.2f} ({min(times):.2f}..{max(times):.2f})"
    return text, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mpi", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--deepspeed", metavar="PYTHON")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=("plait", "mpi"))
    a = parser.parse_args()
    if a.worker:
        plait_worker() if a.worker == "plait" else mpi_worker()
        return
    running = sides(a)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    for side in running.values():
        side.run(1, keep=False)
    for index in range(a.rounds):
        for name in sorted(running, reverse=index % 2 == 1):
            running[name].run(1)
            runs[name].append(running[name].about["us"])
    for side in running.values():
        side.close()
    print(f"all-reduce, float32, in place, {a.ranks} ranks: microseconds")
    means: dict[str, list[float]] = {way: [] for way in WAYS}
    for size in SIZES:
        text, ratios = report(size, runs)
        print(text)
        for way, ratio in ratios.items():
            if size >= 1 << 14:
                means[way].append(math.log(ratio))
    for way, logs in means.items():
        if logs:
            print(f"geometric mean from 16 KB on, {way}: {math.exp(statistics.mean(logs)):.2f}")
    if a.json:
        a.json.write_text(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
