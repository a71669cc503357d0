"""Saving: every rank writes one file under a temporary name, rank 0 renames the whole.

A kill at any moment leaves the previous checkpoint as it was. What goes wrong on any rank becomes
one error on all of them.
"""

import os
import re
import shutil
import traceback
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import plait
from plait.report.text import bytes_text

from .manifest import FILE_NAME, FORMAT, Array, Manifest, Stored
from .piece import CheckpointError, Comm, Piece, where
from .reader import latest, step_folders
from .shard import write_pieces

_TEMPORARY = re.compile(r"\.(step-\d{8,})\.tmp-\w+")  # being written or being removed
_REPLACED = re.compile(
    r"\.(step-\d{8,})\.replaced-\w+"
)  # stands aside while its successor is named

_SHARED = "checkpoints need a folder that all hosts share; set runs_dir to one"

# name, kind, shape, dtype, start, length, file, offset, sha256
_Entry = tuple[str, str, tuple[int, ...], str, int, int, str, int, str]


def save(
    folder: Path,
    step: int,
    pieces: Iterable[Piece],
    comm: Comm,
    *,
    metadata: dict[str, Any],
    keep: int,
) -> Path:
    """Writes folder/step-00000100 from the pieces of all ranks and returns its path. Collective.

    The pieces of all ranks must cover every array exactly once: only owners give pieces. Files are
    synced and read back before the rename; then the oldest complete checkpoints go until `keep`
    are left; those that cannot be read stay as they are. Raises the same CheckpointError on every
    rank, and then nothing has changed.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep}: at least 1 checkpoint must be kept")
    final = folder / f"step-{step:08d}"
    temporary, error = comm.broadcast_object(_begin(final) if comm.rank == 0 else None)
    if error is None:
        outcomes = comm.gather_object(_write_own(temporary, step, pieces, comm))
        if outcomes is not None:
            error = _finish(temporary, final, step, outcomes, metadata)
        error = comm.broadcast_object(error)
    if error is not None:
        raise CheckpointError(error)
    if comm.rank == 0:
        _remove_oldest(folder, step, keep)
    return final


def clean(folder: Path) -> list[str]:
    """Removes what interrupted saves left in a folder of checkpoints, returning the names, and
    puts back a checkpoint that stood aside for one that never came.

    One process calls it, while no save is under way.
    """
    if not folder.is_dir():
        return []
    removed = []
    for path in sorted(folder.iterdir()):
        replaced = _REPLACED.fullmatch(path.name)
        if replaced and not (folder / replaced[1]).exists():
            os.rename(path, folder / replaced[1])
        elif replaced or _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def _begin(final: Path) -> tuple[Path, str | None]:
    """Rank 0: an empty temporary folder, and what went wrong."""
    temporary = final.parent / f".{final.name}.tmp-{uuid.uuid4().hex[:12]}"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        clean(final.parent)
        temporary.mkdir()
    except OSError as error:
        return temporary, _told(final, f"{error.strerror}: {error.filename}")
    return temporary, None


def _write_own(
    temporary: Path, step: int, pieces: Iterable[Piece], comm: Comm
) -> tuple[list[_Entry], str | None]:
    """This rank's file; what it holds, and what went wrong."""
    path = temporary / f"rank-{comm.rank:05d}.safetensors"
    try:
        own = list(pieces)
        for piece in own:
            piece.check()
        full = [piece for piece in own if piece.array.size]
        stored = dict(zip(map(id, full), write_pieces(path, full, {"plait_step": str(step)})))
        entries: list[_Entry] = []
        for piece in own:
            place = (path.name, *stored.get(id(piece), (0, "")))
            shape = tuple(int(n) for n in piece.shape)
            what = (piece.name, piece.kind, shape, piece.dtype.name)
            entries.append((*what, int(piece.start), piece.array.size, *place))
        return entries, None
    except OSError as error:
        if not temporary.exists():
            return [], (f"{where(comm)} does not see {temporary.parent} as rank 0 does: {_SHARED}")
        return [], f"{where(comm)}: {error.strerror}: {path.name}{_space(temporary)}"
    except ValueError as error:
        return [], f"{where(comm)}: {error}"
    except Exception:  # the other ranks wait: they must hear of it
        return [], f"{where(comm)}:\n{traceback.format_exc()}"


def _finish(
    temporary: Path,
    final: Path,
    step: int,
    outcomes: list[tuple[list[_Entry], str | None]],
    metadata: dict[str, Any],
) -> str | None:
    """Rank 0: the manifest and the rename, or everything undone; what went wrong."""
    faults = [error for _, error in outcomes if error is not None]
    error = faults[0] if faults else None
    if len(faults) > 1:
        error = f"{faults[0]} (one of {len(faults)} ranks that failed)"
    try:
        if error is None:
            arrays = _arrays([entry for entries, _ in outcomes for entry in entries])
            manifest = Manifest(FORMAT, plait.__version__, step, metadata, arrays)
            _write_synced(temporary / FILE_NAME, manifest.encode())
            try:
                manifest.check_files(temporary)
            except CheckpointError as fault:
                raise CheckpointError(f"as rank 0 sees it, {fault}: {_SHARED}") from None
            _sync_folder(temporary)
            _put_in_place(temporary, final)
            return None
    except OSError as fault:
        error = f"rank 0: {fault.strerror}: {fault.filename or FILE_NAME}{_space(temporary)}"
    except ValueError as fault:
        error = str(fault)
    except Exception:  # whatever it is: the other ranks wait for a verdict, and get it
        error = traceback.format_exc()
    shutil.rmtree(temporary, ignore_errors=True)
    return _told(final, error)


def _arrays(entries: list[_Entry]) -> dict[str, Array]:
    """The entries of all ranks by array. Raises ValueError unless each is covered exactly once."""
    found: dict[str, Array] = {}
    pieces: dict[str, list[Stored]] = {}
    for name, kind, shape, dtype, start, length, file, offset, sha256 in entries:
        key = f"{kind}/{name}"
        array = found.setdefault(key, Array(name, kind, shape, dtype, ()))
        if (array.shape, array.dtype) != (shape, dtype):
            raise ValueError(
                f"{key} is {array.dtype} {array.shape} on one rank, {dtype} {shape} in {file}"
            )
        if length:
            stored = Stored(start, length, file, offset, sha256)
            pieces.setdefault(key, []).append(stored)
    arrays = {}
    for key in sorted(found):
        array, parts = found[key], sorted(pieces.get(key, []), key=lambda piece: piece.start)
        arrays[key] = Array(array.name, array.kind, array.shape, array.dtype, tuple(parts))
        if fault := arrays[key].gap():
            raise ValueError(
                f"the ranks' pieces do not make up {key}, shape {array.shape}: {fault}"
            )
    return arrays


def _put_in_place(temporary: Path, final: Path) -> None:
    """Renames the new checkpoint; one of the same step stands aside meanwhile (`clean` knows)."""
    aside = final.parent / f".{final.name}.replaced-{uuid.uuid4().hex[:12]}"
    if final.exists():
        os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except OSError:
        if aside.exists():
            os.rename(aside, final)
        raise
    _sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_oldest(folder: Path, step: int, keep: int) -> None:
    """Removes complete checkpoints older than `step` until keep are left with the new one.

    One that cannot be read counts for nothing: it must not take the place of a whole one.
    """
    older = []
    with suppress(CheckpointError):  # the folder itself cannot be listed
        older = [path for n, path in step_folders(folder) if n < step and _complete(path)]
    for path in older[keep - 1 :]:
        doomed = folder / f".{path.name}.tmp-{uuid.uuid4().hex[:12]}"
        with suppress(OSError):  # it may belong to someone else; the new one is safe
            os.rename(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _complete(path: Path) -> bool:
    try:
        Manifest.read(path)
    except CheckpointError:
        return False
    return True


def _told(final: Path, error: str) -> str:
    previous = None
    with suppress(CheckpointError):
        previous = latest(final.parent)
    rest = f"{previous.name} is as it was" if previous else "there is no earlier one"
    return f"{final} could not be written: {error}; {rest}"


def _space(folder: Path) -> str:
    with suppress(OSError):
        return f" ({bytes_text(shutil.disk_usage(folder).free)} free on this disk)"
    return ""


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot, and need not
        if error.errno not in (22, 95):
            raise
    finally:
        os.close(handle)
