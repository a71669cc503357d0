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
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TypeVar, cast

import plait
from plait.errors import UserError

from .lines import append, line, trim_last_line, write_whole

T = TypeVar("T")
_KINDS = ("start", "save", "resume", "fault", "stop")


class Comm(Protocol):
    """What opening a run folder asks of a communicator."""

    @property
    def rank(self) -> int: ...
    def broadcast_object(self, value: Any, root: int = 0) -> Any: ...


def on_rank_0(comm: Comm, place: Path, action: Callable[[], T]) -> T:
    """What rank 0's action returned, on every rank, or its error as a UserError. Collective.

    place: named where an error of the disk names no file."""
    result, error = None, None
    if comm.rank == 0:
        try:
            result = action()
        except UserError as fault:
            error = str(fault)
        except OSError as fault:
            error = f"{fault.filename or place}: {fault.strerror}"
    result, error = comm.broadcast_object((result, error))
    if error is not None:
        raise UserError(error)
    return cast(T, result)


class RunFolder:
    """The files of one run. Every rank has one; on other ranks than 0 only `fault` writes.

    fresh: opening it moves an old folder to NAME.old-1 (or -2, ...) first.
    """

    previous_config: str | None = None  # config.toml as it was found; None for a new run
    moved_to: Path | None = None  # where fresh put the old folder
    is_open = False

    def __init__(self, path: Path, comm: Comm, *, fresh: bool = False):
        self.path, self._comm, self._fresh = path, comm, fresh
        self._found: bool | None = None  # whether the folder was there; None: nobody has looked
        self.config_path = path / "config.toml"
        self.metrics_path = path / "metrics.jsonl"
        self.events_path = path / "events.jsonl"
        self.checkpoints = path / "checkpoints"
        self._lock: IO[bytes] | None = None
        self._open: dict[Path, BinaryIO] = {}

    def look(self) -> None:
        """Locks a folder that is there and reads its config; makes and moves nothing.

        Collective, as all that raises: the same UserError on every rank where another job writes
        here or the disk refuses.
        """
        self._found, self.previous_config = self.on_rank_0(self._look)

    def open(self) -> None:
        """Makes the folder, or takes over the one that is there. Collective."""
        if self._found is None:
            self.look()
        self.moved_to = self.on_rank_0(self._take)
        self.is_open = True

    def write(self, name: str, text: str) -> None:
        """Replaces a file of the folder, such as config.toml, in UTF-8. Collective."""
        self.on_rank_0(lambda: self._write(self.path / name, text))

    def resume(self, next_step: int) -> int:
        """Drops the metrics of steps from next_step on, which will run again, and returns how many
        rows that were. Collective."""
        return self.on_rank_0(lambda: self._trim_metrics(next_step))

    def holds(self, step: int, key: str) -> bool:
        """Whether metrics.jsonl has a row of that step with that key. Collective."""
        return self.on_rank_0(lambda: self._holds(step, key))

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
        self._open, self._lock, self._found, self.is_open = {}, None, None, False

    def on_rank_0(self, action: Callable[[], T]) -> T:
        """What rank 0's action returned, on every rank, or its error as a UserError. Collective."""
        return on_rank_0(self._comm, self.path, action)

    def _look(self) -> tuple[bool, str | None]:
        if not self.path.exists():
            return False, None
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give the run another name")
        self._take_lock()
        there = self.config_path.exists() and not self._fresh
        return True, self.config_path.read_text(encoding="utf-8") if there else None

    def _take(self) -> Path | None:
        aside, old_lock = None, None
        if self._found and self._fresh:
            aside, old_lock, self._lock = _free_name(self.path), self._lock, None
            os.rename(self.path, aside)
        self.path.mkdir(parents=True, exist_ok=True)
        if aside or not self._found:
            self._take_lock()
            if self.config_path.exists():
                raise UserError(f"another job has just made {self.path}: start again")
        if old_lock:
            old_lock.close()
        self.checkpoints.mkdir(exist_ok=True)
        for path in (self.metrics_path, self.events_path):
            trim_last_line(path)
            self._reopen(path)
        return aside

    def _reopen(self, path: Path) -> None:
        self._open[path] = open(path, "ab", buffering=0)  # noqa: SIM115

    def _take_lock(self) -> None:
        """Holds the folder until this process ends; there is no lock where the disk knows none."""
        path, own = self.path / ".lock", f"process {os.getpid()} on {socket.gethostname()}"
        lock = open(path, "a+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().decode(errors="replace").strip()
            lock.close()
            if holder == own:
                raise UserError(
                    f"{self.path} is being written by this very process: close() the Trainer that "
                    "has it first, or give this run another name"
                ) from None
            raise UserError(
                f"{self.path} is being written by another job ({holder or 'unknown'}): "
                "wait for it, stop it, or give this run another name"
            ) from None
        except OSError:
            lock.close()
            return
        if not (path.exists() and os.path.samestat(os.fstat(lock.fileno()), os.stat(path))):
            lock.close()
            raise UserError(f"another job has just moved {self.path} aside: start again")
        self._lock = lock
        with suppress(OSError):  # a full disk: what needs more room will say so
            lock.truncate(0)
            lock.write(f"{own}\n".encode())

    def _write(self, path: Path, text: str) -> None:
        try:
            write_whole(path, [text.encode()])
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    def _trim_metrics(self, next_step: int) -> int:
        """Keeps the whole rows of steps before next_step; rewrites only where there are others."""
        self._open.pop(self.metrics_path).close()
        with open(self.metrics_path, "rb") as file:
            if dropped := sum(_step_of(row) >= next_step for row in file):
                file.seek(0)
                write_whole(self.metrics_path, (row for row in file if _step_of(row) < next_step))
        self._reopen(self.metrics_path)
        return dropped

    def _holds(self, step: int, key: str) -> bool:
        with open(self.metrics_path, "rb") as file:
            return any(_step_of(row) == step and key in json.loads(row) for row in file)

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
