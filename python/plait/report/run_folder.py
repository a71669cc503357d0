"""runs/NAME: config.toml, metrics.jsonl, events.jsonl, checkpoints/. Written by rank 0.

Lines are whole or dropped: a line cut off by a kill is trimmed at the next start, and no step
appears twice after a resume.
"""

import fcntl
import json
import math
import os
import platform
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol

import plait
from plait.errors import UserError

from .lines import append, line, trim_last_line, write_whole

_KINDS = ("start", "save", "resume", "fault", "stop")


class Comm(Protocol):
    """What opening a run folder asks of a communicator."""

    @property
    def rank(self) -> int: ...
    def broadcast_object(self, value: Any, root: int = 0) -> Any: ...


class RunFolder:
    """The files of one run. Every rank has one; on other ranks than 0 only `fault` writes."""

    previous_config: str | None = None  # config.toml as it was found; None for a new run
    moved_to: Path | None = None  # where fresh put the old folder

    def __init__(self, path: Path, comm: Comm):
        self.path, self._comm = path, comm
        self.config_path = path / "config.toml"
        self.metrics_path = path / "metrics.jsonl"
        self.events_path = path / "events.jsonl"
        self.checkpoints = path / "checkpoints"
        self._lock: IO[bytes] | None = None
        self._open: dict[Path, BinaryIO] = {}

    def open(self, *, fresh: bool = False) -> None:
        """Makes or takes over the folder; fresh moves an old one to NAME.old-1 (or -2, ...) first.

        Collective, as all that raises: the same UserError on every rank where another job writes
        here or the disk refuses.
        """
        self.previous_config, self.moved_to = self._on_rank_0(lambda: self._take(fresh))

    def write_config(self, text: str) -> None:
        """Replaces config.toml. Collective."""
        self._on_rank_0(lambda: write_whole(self.config_path, [text.encode()]))

    def resume(self, next_step: int) -> None:
        """Drops metrics of steps from next_step on: they will run again. Collective."""
        self._on_rank_0(lambda: self._trim_metrics(next_step))

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Appends a row, with "step" in it, to metrics.jsonl. NaN and infinity become null."""
        assert "step" in row, "a metrics row has a step"
        self._append(self.metrics_path, row)

    def event(self, kind: str, **fields: Any) -> None:
        """Appends start, save, resume, fault or stop to events.jsonl, with time, host, versions."""
        assert kind in _KINDS, kind
        self._append(self.events_path, _event(kind, fields))

    def fault(self, text: str, **fields: Any) -> None:
        """A fault event from any rank that is about to end; never raises."""
        text_line = line(_event("fault", {"rank": self._comm.rank, "text": text, **fields}))
        try:
            handle = os.open(self.events_path, os.O_WRONLY | os.O_APPEND)
            os.write(handle, text_line)
            os.close(handle)
        except OSError:
            return

    def close(self) -> None:
        """Gives the folder back to other jobs."""
        for file in (*self._open.values(), *([self._lock] if self._lock else [])):
            file.close()
        self._open, self._lock = {}, None

    def _on_rank_0(self, action: Callable[[], Any]) -> Any:
        """What rank 0's action returned, on every rank, or its error as a UserError."""
        result, error = None, None
        if self._comm.rank == 0:
            try:
                result = action()
            except UserError as fault:
                error = str(fault)
            except OSError as fault:
                error = f"{fault.filename or self.path}: {fault.strerror}"
        result, error = self._comm.broadcast_object((result, error))
        if error is not None:
            raise UserError(error)
        return result

    def _take(self, fresh: bool) -> tuple[str | None, Path | None]:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give the run another name")
        aside = None
        if fresh and self.path.exists():
            self._take_lock()  # never from under another job
            self.close()
            aside = _free_name(self.path)
            os.rename(self.path, aside)
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self.checkpoints.mkdir(exist_ok=True)
        for path in (self.metrics_path, self.events_path):
            trim_last_line(path)
            self._reopen(path)
        return self.config_path.read_text() if self.config_path.exists() else None, aside

    def _reopen(self, path: Path) -> None:
        self._open[path] = open(path, "ab", buffering=0)  # noqa: SIM115

    def _take_lock(self) -> None:
        """Holds the folder until this process ends; there is no lock where the disk knows none."""
        path = self.path / ".lock"
        lock = open(path, "a+b")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().decode(errors="replace").strip()
            lock.close()
            raise UserError(
                f"{self.path} is being written by another job ({holder or 'unknown'}): "
                "wait for it, stop it, or give this run another name"
            ) from None
        except OSError:
            lock.close()
            return
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        lock.flush()
        self._lock = lock

    def _trim_metrics(self, next_step: int) -> None:
        """Keeps the whole rows of steps before next_step; rewrites only where there are others."""
        self._open.pop(self.metrics_path).close()
        with open(self.metrics_path, "rb") as file:
            if any(_step_of(row) >= next_step for row in file):
                file.seek(0)
                write_whole(self.metrics_path, (row for row in file if _step_of(row) < next_step))
        self._reopen(self.metrics_path)

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        if self._comm.rank != 0:
            return
        try:
            append(self._open[path], row)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _free_name(path: Path) -> Path:
    number = 1
    while (found := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return found


def _event(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"event": kind, "time": now, "host": socket.gethostname(), **fields, **_versions(kind)}


def _versions(kind: str) -> dict[str, Any]:
    if kind not in ("start", "resume"):
        return {}
    from importlib.metadata import PackageNotFoundError, version

    found = {"plait": plait.__version__, "python": platform.python_version()}
    for name in ("numpy", "mpi4py", "ml_dtypes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return {"versions": found}


def _step_of(row: bytes) -> float:
    """The step of a row; infinity for a line that is none."""
    try:
        return float(json.loads(row)["step"]) if row.endswith(b"\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf
