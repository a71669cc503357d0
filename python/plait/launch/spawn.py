"""plait train --ranks N without a launcher: N ranks on this machine, and nothing left of them.

This process starts the mpiexec that belongs to the loaded MPI, passes signals on, and at the end
kills and removes whatever a rank that died left behind.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import gettempdir
from types import FrameType

from plait.comm.shared_files import files, remove_left
from plait.job.hook import FAILED, USER_ERROR
from plait.job.signals import REPEATED_SECONDS, SIGNALS, STOPPED, ignore_signals, told
from plait.job.world import SPAWNED, VERDICT

from .mpi import mpiexec

_GRACE_SECONDS = 2.0
_LAUNCHER_VARIABLES = ("PMI_", "PMIX_", "OMPI_COMM_", "HYDI_", "MPI_LOCAL", "PALS_")
_SUBREAPER, _PARENT_DEATH = 36, 1  # options of prctl


def spawn(arguments: Sequence[str], ranks: int) -> int:
    """Runs `plait ARGUMENTS` on new local ranks; returns plait's exit code: 0, 2, 3 or 75."""
    launcher = mpiexec()
    command = [str(launcher), "-n", str(ranks), sys.executable, "-P", "-m", "plait", *arguments]
    before = files()
    prctl = _prctl()
    prctl(_SUBREAPER, 1)  # ranks whose launcher died become our children
    verdict = Path(gettempdir()) / f"plait-verdict-{uuid.uuid4().hex}"  # there if a rank fails
    process = subprocess.Popen(
        command,
        env={**environment(ranks), SPAWNED: str(ranks), VERDICT: str(verdict)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C comes to us alone
        preexec_fn=lambda: prctl(_PARENT_DEATH, signal.SIGTERM),
    )
    at_once = _pass_signals_on(process)
    try:
        code = _wait(process, at_once)
        if verdict.exists():
            code = int(verdict.read_text() or FAILED)
    finally:
        ignore_signals()  # the rest is quick
        _kill_children()
        remove_left(before)
        verdict.unlink(missing_ok=True)
    return FAILED if at_once else _plain(code)


def _wait(process: "subprocess.Popen[bytes]", at_once: list[float]) -> int:
    """mpiexec's exit code; after a second signal it has a moment to end by itself."""
    while True:
        try:
            return process.wait(_GRACE_SECONDS / 4)
        except subprocess.TimeoutExpired:
            if at_once and time.monotonic() - at_once[0] >= _GRACE_SECONDS:
                process.kill()


def _plain(code: int) -> int:
    """mpiexec's exit code as plait's; says what a rank that was killed could not."""
    if code in (0, USER_ERROR, FAILED, STOPPED):
        return code
    number = -code if code < 0 else code - 128 if code > 128 else code
    known = {s.value for s in signal.Signals}
    cause = f"signal {signal.Signals(number).name}" if number in known else f"code {code}"
    hint = ": often the system's answer to too little memory" if number == signal.SIGKILL else ""
    print(f"plait: a rank ended with {cause}{hint}; all ranks were stopped", file=sys.stderr)
    return FAILED


def environment(ranks: int) -> dict[str, str]:
    """Ours, without traces of another launcher, with what Open MPI and a terminal need."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHER_VARIABLES)}
    added = {
        # Open MPI 5 and 4: more ranks than cores, waits that yield, no binding to single cores
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
    }
    if ranks > len(os.sched_getaffinity(0)):
        added["OMPI_MCA_mpi_yield_when_idle"] = "1"
    if os.geteuid() == 0:
        added |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if sys.stderr.isatty():  # rank 0 writes to a pipe, and what it writes reaches a terminal
        size = os.get_terminal_size(sys.stderr.fileno())
        added |= {"TTY_COMPATIBLE": "1", "FORCE_COLOR": "1"}
        added |= {"COLUMNS": str(size.columns or 80), "LINES": str(size.lines or 25)}
    return {**added, **kept}


def _pass_signals_on(process: "subprocess.Popen[bytes]") -> list[float]:
    """The first signal asks the ranks to save and stop (every mpiexec forwards USR1); one that
    comes later ends them, and its time is then in the list returned."""
    first: list[float] = []
    at_once: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            os.write(sys.stderr.fileno(), f"plait: {told(number)}\n".encode())
            process.send_signal(signal.SIGUSR1)
        elif now - first[0] >= REPEATED_SECONDS:
            at_once.append(now)
            process.terminate()  # it tells the ranks once more, or ends them

    for number in SIGNALS:
        signal.signal(number, handle)
    return at_once


def _kill_children() -> None:
    """Kills and reaps every process below this one; those of a killed mpiexec come to us."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while (left := _descendants(os.getpid())) and time.monotonic() < deadline:
        for process in left:
            _kill(process)
        time.sleep(0.01)


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, os.WNOHANG)
    except (ProcessLookupError, ChildProcessError, PermissionError):
        return


def _descendants(ancestor: int) -> list[int]:
    """Processes below one, parents first; those that ended and wait to be reaped too."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            below.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(below.get(ancestor, []))
    for process in found:
        found += below.get(process, [])
    return found


def _prctl() -> Callable[[int, int], int]:
    """Linux's prctl; nothing elsewhere."""
    call = getattr(ctypes.CDLL(None), "prctl", None)
    if call is None:
        return lambda option, value: 0
    return lambda option, value: int(call(option, value, 0, 0, 0))
