"""plait train --ranks N without a launcher: N ranks on this machine, and nothing left of them.

This process starts the mpiexec that belongs to the loaded MPI, tells the ranks of signals, and at
the end kills and removes whatever a rank that died left behind.
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
from plait.job.signals import REPEATED_SECONDS, STOPPED, heeded, ignore_signals, told
from plait.job.streams import tell
from plait.job.world import SPAWNED, STOP, VERDICT

from .hydra import hydra_files, remove_hydra_files
from .mpi import mpiexec
from .relay import Relay

_GRACE_SECONDS, _LOOK_SECONDS = 2.0, 0.2
_LAUNCHER_VARIABLES = ("PMI_", "PMIX_", "OMPI_COMM_", "HYDI_", "MPI_LOCAL", "PALS_")
_SUBREAPER, _PARENT_DEATH = 36, 1  # options of prctl


def spawn(arguments: Sequence[str], ranks: int) -> int:
    """Runs `plait ARGUMENTS` on new local ranks; returns plait's exit code: 0, 2, 3 or 75."""
    name = Path(gettempdir()) / f"plait-{uuid.uuid4().hex}"
    verdict, stop = name.with_suffix(".verdict"), name.with_suffix(".stop")
    launcher = mpiexec()
    asked = _Asked(stop)
    command = [str(launcher), "-n", str(ranks), sys.executable, "-P", "-m", "plait", *arguments]
    before, before_hydra = files(), hydra_files()
    prctl = _prctl()
    prctl(_SUBREAPER, 1)  # ranks whose launcher died become our children
    added = {SPAWNED: str(ranks), VERDICT: str(verdict), STOP: str(stop)}
    process = subprocess.Popen(
        command,
        env={**environment(ranks), **added},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C comes to us alone
        preexec_fn=lambda: prctl(_PARENT_DEATH, signal.SIGTERM),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    relay = Relay(process.stdout, process.stderr)
    try:
        code = asked.wait(process)
        if verdict.exists():
            code = int(verdict.read_text("utf-8") or FAILED)
    finally:
        ignore_signals()  # the rest is quick
        _kill_children()
        relay.finish(_GRACE_SECONDS)
        remove_left(before)
        remove_hydra_files(before_hydra)
        for path in (verdict, stop):
            path.unlink(missing_ok=True)
    if asked.at_once is not None and code != STOPPED:
        return FAILED
    return _plain(code)


class _Asked:
    """Signals to this process, from when it is made. The first makes the file `stop`, which the
    ranks look for after each step; one that comes later ends them."""

    def __init__(self, stop: Path) -> None:
        self._stop = stop
        self._first: float | None = None
        self.at_once: float | None = None  # when the later one came
        for number in heeded():
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            try:
                self._stop.touch()
            except OSError as error:
                tell(f"plait: the ranks cannot be asked to stop: {error}; once more ends them\n")
                return
            tell(f"plait: {told(number)}\n")
        elif self.at_once is None and now - self._first >= REPEATED_SECONDS:
            self.at_once = now

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        """mpiexec's exit code; after a second signal it has a moment to end by itself."""
        terminated = False
        while True:
            try:
                return process.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                if self.at_once is None:
                    continue
                if not terminated:
                    process.terminate()  # it tells the ranks once more, or ends them
                    terminated = True
                elif time.monotonic() - self.at_once >= _GRACE_SECONDS:
                    process.kill()


def _plain(code: int) -> int:
    """mpiexec's exit code as plait's; says what a rank that was killed could not."""
    if code in (0, USER_ERROR, FAILED, STOPPED):
        return code
    number = -code if code < 0 else code - 128 if code > 128 else code
    known = {s.value for s in signal.Signals}
    cause = f"signal {signal.Signals(number).name}" if number in known else f"code {code}"
    hint = ": often the system's answer to too little memory" if number == signal.SIGKILL else ""
    tell(f"plait: a rank ended with {cause}{hint}; all ranks were stopped\n")
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
                fields = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
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
