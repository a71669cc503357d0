"""Two programs that take turns on one machine, so that a busy machine is busy for both.

Each process of a program waits in its own FIFO until it is told how many steps to take: nobody
spins while the other side works. Rank 0 answers with the seconds of each step, and with those its
process had a core, which other work on the machine changes less.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from select import select
from typing import Any

FOLDER = "PLAIT_BENCHMARK_FOLDER"
# The C library keeps memory that was freed
TUNED = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=34359738368"
}


def serve(rank: int, step: Callable[[], None], about: Callable[[], dict[str, Any]]) -> None:
    """What a process does: steps when told to, until told to end. Every process calls about() after
    its steps; that of rank 0 goes with its answer."""
    folder = Path(os.environ[FOLDER])
    with (folder / f"go.{rank}").open() as go:
        while count := int(go.readline()):
            seconds, cpu = [], []
            for _ in range(count):
                begin, used = time.perf_counter(), time.process_time()
                step()
                seconds.append(time.perf_counter() - begin)
                cpu.append(time.process_time() - used)
            found = {"seconds": seconds, "cpu": cpu, **about()}
            if rank == 0:
                with (folder / "answer").open("w") as answer:
                    answer.write(json.dumps(found) + "\n")


class Side:
    """One program: command, with `ranks` processes that call serve()."""

    def __init__(self, command: list[str], ranks: int, environment: Mapping[str, str] = {}):
        self.folder = Path(tempfile.mkdtemp(prefix="plait-benchmark-"))
        for name in (*(f"go.{rank}" for rank in range(ranks)), "answer"):
            os.mkfifo(self.folder / name)
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment, FOLDER: str(self.folder)}
        )
        # open for reading too: it does not block, and writes wait for who comes late
        self.go = [os.open(self.folder / f"go.{rank}", os.O_RDWR) for rank in range(ranks)]
        self.about: dict[str, Any] = {}
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.first = self.run(1, keep=False) and time.perf_counter() - self.began

    def run(self, steps: int, keep: bool = True) -> list[float]:
        for file in self.go:
            os.write(file, f"{steps}\n".encode())
        self.about = json.loads(self._answer())
        seconds: list[float] = self.about.pop("seconds")
        cpu: list[float] = self.about.pop("cpu")
        if keep:
            self.seconds += seconds
            self.cpu += cpu
        return seconds

    def _answer(self) -> str:
        """One line; fails if the program ends without."""
        file = os.open(self.folder / "answer", os.O_RDONLY | os.O_NONBLOCK)
        text = b""
        try:
            while not text.endswith(b"\n"):
                if not (part := os.read(file, 1 << 16) if select([file], [], [], 0.05)[0] else b""):
                    if self.process.poll() is not None:
                        raise RuntimeError(f"{self.process.args} ended")
                    time.sleep(0.001)  # nobody has opened the other end yet
                text += part
        finally:
            os.close(file)
        return text.decode()

    def close(self) -> None:
        for file in self.go:
            os.write(file, b"0\n")
        if self.process.wait(60) != 0:
            raise RuntimeError(f"{self.process.args} ended with {self.process.returncode}")
        for file in self.go:
            os.close(file)
        shutil.rmtree(self.folder)


def rounds(sides: dict[str, Side], count: int, steps: int = 1, warm_up: int = 2) -> None:
    """All sides in turn, in an order that changes from round to round."""
    for side in sides.values():
        side.run(warm_up, keep=False)
    for index in range(count):
        for name in list(sides) if index % 2 else list(reversed(sides)):
            sides[name].run(steps)


def ratio_text(mine: list[float], peer: list[float], work: float = 1) -> str:
    """How many times as fast `mine` is, which does `work` times the peer's work, round by round:
    median (lowest..highest)."""
    ratios = [work * b / a for a, b in zip(mine, peer, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
