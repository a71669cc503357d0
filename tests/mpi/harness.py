"""Cases that run on several ranks: how they register, and how pytest starts them.

One mpiexec per rank count runs all its selected cases in turn. Every rank writes what it does as
JSON lines; a case that fails, dies or outlives its limit ends that mpiexec, and the cases after it
get a fresh one.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
START_LIMIT = 60.0  # seconds for mpiexec and the imports, with other work on the machine
_SHARED_MEMORY = ("mpich_shm_", "vader_segment", "sm_segment", "osc_rdma", "psm2_shm")


@dataclass(frozen=True)
class Case:
    """function(world) on `ranks` ranks, world a plait Communicator; limit in seconds; long: takes
    minutes, and runs with --long only; cuda: needs csrc/cuda, on a GPU or on fibers, and runs with
    --cuda only."""

    name: str
    ranks: int
    function: Callable[[Any], None]
    limit: float
    long: bool = False
    cuda: bool = False


@dataclass(frozen=True)
class Outcome:
    passed: bool
    seconds: float
    report: str = ""


_registered: list[Case] = []
keeping = False


@contextmanager
def kept() -> Iterator[None]:
    """Communicators made inside stay open after the case that makes them."""
    global keeping
    keeping = True
    try:
        yield
    finally:
        keeping = False


def case(
    ranks: int | tuple[int, ...],
    *,
    limit: float = 120.0,
    long: bool | tuple[int, ...] = False,
    cuda: bool = False,
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Registers a function(world) to run on each of these rank counts. long: with --long only, on
    all of them or on some."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        file = function.__module__.removeprefix("cases_")
        for count in (ranks,) if isinstance(ranks, int) else ranks:
            name = f"{file}.{function.__name__}"
            only_long = long if isinstance(long, bool) else count in long
            _registered.append(Case(name, count, function, limit, only_long, cuda))
        return function

    return register


def load_cases(folder: Path = HERE) -> list[Case]:
    """The cases of every cases_*.py in a folder."""
    sys.path.insert(0, str(folder))
    for path in sorted(folder.glob("cases_*.py")):
        importlib.import_module(path.stem)
    return list(_registered)


def run_cases(cases: list[Case], source: Path = HERE) -> dict[str, Outcome]:
    """Runs cases of one rank count, from the cases_*.py of `source`; a fresh mpiexec after each
    that failed."""
    outcomes: dict[str, Outcome] = {}
    while left := [c for c in cases if c.name not in outcomes]:
        outcomes.update(_run_once(left, source))
    return outcomes


def _run_once(cases: list[Case], source: Path) -> dict[str, Outcome]:
    ranks, mark = cases[0].ranks, uuid.uuid4().hex
    folder = Path(tempfile.mkdtemp(prefix="plait-mpi-"))
    shared_before = _shared_memory()
    command = [_mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py"]
    command += [str(HERE / "runner.py"), str(source), str(folder), *(c.name for c in cases)]
    limit = START_LIMIT + sum(c.limit for c in cases)
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(folder, mark),
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = f"none within {limit:.0f} s"
        finally:
            _end(process, mark)
            _remove_shared_memory(shared_before)
    try:
        return _outcomes(cases, folder, output.read_text(errors="replace"), code)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _outcomes(cases: list[Case], folder: Path, output: str, code: int | str) -> dict[str, Outcome]:
    """Those that every rank finished, and the first that some rank did not."""
    events = [_events(folder / f"events.{rank}") for rank in range(cases[0].ranks)]
    found: dict[str, Outcome] = {}
    names = [c.name for c in cases]
    # A rank begins a case once all have come to the end of the one before.
    last = max((names.index(e["case"]) for rank in events for e in rank), default=0)
    for index, case_ in enumerate(cases):
        mine = [[e for e in rank if e["case"] == case_.name] for rank in events]
        ends = [e for rank in mine for e in rank if e["event"] == "passed"]
        if len(ends) == len(events) or index < last:
            found[case_.name] = Outcome(True, max((e["seconds"] for e in ends), default=0.0))
            continue
        lines = [f"case {case_.name} on {len(events)} ranks, mpiexec's exit code: {code}"]
        for rank, own in enumerate(mine):
            lines += [f"[rank {rank}] {e['traceback']}" for e in own if e["event"] == "failed"]
            stack = folder / f"stack.{rank}"
            if stack.exists() and (text := stack.read_text(errors="replace")):
                lines.append(f"[rank {rank}] died or was out of time ({case_.limit} s) at\n{text}")
        tail = output[-4000:]
        found[case_.name] = Outcome(False, 0.0, "\n".join([*lines, "--- output", tail]))
        break
    return found


def _events(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline was cut off


def _mpiexec() -> str:
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise FileNotFoundError("no mpiexec beside python or in PATH: pip install 'plait[mpich]'")
    return found


def _environment(folder: Path, mark: str) -> dict[str, str]:
    here = str(HERE)
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{path}{os.pathsep}{here}" if path else here,
        "PLAIT_TEST_RUN": mark,
        "TMPDIR": str(folder),
        "OPENBLAS_NUM_THREADS": "1",
        # Open MPI as root, and with more ranks than cores
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Ends mpiexec, and whatever of its ranks is left."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    deadline = time.monotonic() + 10.0
    while (left := _marked(mark)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _marked(mark: str) -> list[int]:
    """Processes that inherited this run's mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"PLAIT_TEST_RUN={mark}".encode() in environment:
                found.append(int(entry.name))
    return found


def _shared_memory() -> set[Path]:
    shared = Path("/dev/shm")
    return (
        {p for p in shared.iterdir() if p.name.startswith(_SHARED_MEMORY)}
        if shared.exists()
        else set()
    )


def _remove_shared_memory(before: set[Path]) -> None:
    """MPI's files that a killed run left: new ones that no process maps."""
    new = _shared_memory() - before
    if not new:
        return
    mapped = ""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                mapped += (entry / "maps").read_text()
            except OSError:
                continue
    for path in new:
        if str(path) not in mapped:
            path.unlink(missing_ok=True)
