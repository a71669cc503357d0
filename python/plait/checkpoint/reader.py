"""Any range of any array of a checkpoint, from whatever pieces hold it, their hashes checked."""

import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .manifest import FILE_NAME, Array, Manifest, Stored
from .piece import AccessError, CheckpointError, bytes_of, key_of
from .shard import stream

STEP_NAME = re.compile(r"step-(\d{8,})")


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of everything named like a checkpoint, newest first.

    Raises AccessError where the folder is there and cannot be listed.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise AccessError(f"{folder} cannot be read: {error.strerror}") from None
    found = [
        (int(match[1]), folder / match[0]) for match in map(STEP_NAME.fullmatch, names) if match
    ]
    return sorted(found, reverse=True)


def latest(
    folder: str | os.PathLike[str], on_broken: Callable[[str], None] | None = None
) -> Path | None:
    """The newest complete checkpoint of a folder: its manifest is whole and its files are there.

    on_broken gets a line for each newer one that is passed over. Raises AccessError where the disk
    does not tell whether one is complete.
    """
    for _, path in step_folders(Path(folder)):
        try:
            Manifest.read(path)
        except AccessError:
            raise
        except CheckpointError as error:
            if on_broken:
                on_broken(f"{error}: passing over {path.name}")
            continue
        return path
    return None


def resumable(folder: Path, on_broken: Callable[[str], None]) -> Path | None:
    """latest for a run that goes on: None only where no checkpoint was ever written.

    Raises CheckpointError where there are some and none is complete.
    """
    broken: list[str] = []
    path = latest(folder, broken.append)
    if path is None and broken:
        raise CheckpointError(
            f"no checkpoint in {folder} can be read: {'; '.join(broken)}; move them aside to start "
            "from step 0, or start afresh with --fresh (the old folder is moved aside)"
        )
    for line in broken:
        on_broken(line)
    return path


def find(path: str | os.PathLike[str], on_broken: Callable[[str], None] | None = None) -> Path:
    """The checkpoint that a path means: itself, or the newest of a run or a folder of checkpoints.

    on_broken as for latest. Raises CheckpointError where there is none.
    """
    path = Path(path)
    if (path / FILE_NAME).exists() or STEP_NAME.fullmatch(path.name):
        return path
    broken: list[str] = []
    for folder in (path / "checkpoints", path):
        if found := latest(folder, broken.append):
            if on_broken:
                for line in broken:
                    on_broken(line)
            return found
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give a run, or one of its checkpoints")
    raise CheckpointError("; ".join([f"no checkpoint in {path}", *broken]))


class Reader:
    """Reads one checkpoint. Raises CheckpointError where it is not complete."""

    def __init__(self, folder: str | os.PathLike[str], *, verify: bool = True):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self._verify = verify
        self._verified: set[tuple[str, int]] = set()

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def metadata(self) -> dict[str, Any]:
        return self.manifest.metadata

    def array(self, name: str, kind: str) -> Array:
        """What the manifest says of an array."""
        found = self.manifest.arrays.get(key_of(name, kind))
        if found is None:
            raise CheckpointError(f"{self.folder} holds no {kind} of {name}")
        return found

    def read(
        self, name: str, kind: str = "master", start: int = 0, stop: int | None = None
    ) -> npt.NDArray[Any]:
        """Elements [start, stop) of the flat global array, 1-D.

        Raises CheckpointError for a file that is missing, cut short, or differs from its hash.
        """
        array = self.array(name, kind)
        stop = array.size if stop is None else stop
        out = np.empty(stop - start if start <= stop else 0, array.item)
        self.read_into(out, name, kind, start)
        return out

    def read_into(self, out: npt.NDArray[Any], name: str, kind: str, start: int) -> None:
        """Fills out (1-D, contiguous, of the array's type) with the elements from `start` on."""
        array = self.array(name, kind)
        stop = start + out.size
        if not 0 <= start <= stop <= array.size:
            raise ValueError(f"elements {start} to {stop} of {name}, which has {array.size}")
        if out.dtype != array.item:
            raise ValueError(f"{kind} of {name} is {array.dtype}, the array to fill is {out.dtype}")
        size, target = array.item.itemsize, bytes_of(out)
        for piece in _touched(array, start, stop):
            first, last = max(start, piece.start), min(stop, piece.start + piece.length)
            place = target[(first - start) * size : (last - start) * size]
            self._copy(array, piece, (first - piece.start) * size, place)

    def verify_piece(self, array: Array, piece: Stored) -> None:
        """Raises CheckpointError unless the piece is there and fits its hash."""
        self._copy(array, piece, 0, memoryview(b""))

    def _copy(self, array: Array, piece: Stored, begin: int, place: memoryview) -> None:
        """place = the bytes of the piece from `begin`; the whole piece is hashed the first time."""
        what = f"{key_of(array.name, array.kind)}@{piece.start}"
        mark = (key_of(array.name, array.kind), piece.start)
        whole = self._verify and mark not in self._verified
        length = piece.length * array.item.itemsize if whole else len(place)
        offset = piece.offset if whole else piece.offset + begin
        skipped = begin if whole else 0
        found, path = hashlib.sha256(), self.folder / piece.file
        try:
            with open(path, "rb") as file:
                for done, chunk in stream(file, offset, length):
                    if whole:
                        found.update(chunk)
                    low, high = max(done, skipped), min(done + len(chunk), skipped + len(place))
                    if low < high:
                        place[low - skipped : high - skipped] = chunk[low - done : high - done]
        except OSError as error:
            raise CheckpointError(
                f"{path}: {what} cannot be read: {os.strerror(error.errno or 0)}"
            ) from None
        except EOFError as error:
            raise CheckpointError(f"{path} is truncated: {what} {error}") from None
        if not whole:
            return
        if found.hexdigest() != piece.sha256:
            raise CheckpointError(
                f"{path} is damaged: {what} has SHA-256 {found.hexdigest()[:16]}..., "
                f"expected {piece.sha256[:16]}...; {self._mend()}"
            )
        self._verified.add(mark)

    def _mend(self) -> str:
        older = [p for step, p in step_folders(self.folder.parent) if step < self.step]
        if older:
            return f"move {self.folder.name} aside to go on from {older[0].name}"
        return "there is no older checkpoint: start again with --fresh"


def _touched(array: Array, start: int, stop: int) -> Iterator[Stored]:
    if start == stop:
        return
    first = bisect_right(array.pieces, start, key=lambda piece: piece.start) - 1
    for piece in array.pieces[first:]:
        if piece.start >= stop:
            return
        yield piece
