"""What a checkpoint holds, and whether it is whole."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .manifest import FILE_NAME, Array, Manifest
from .piece import SAFETENSORS_NAMES, CheckpointError
from .reader import Reader
from .shard import read_header


@dataclass(frozen=True)
class Report:
    """What verify found: counts of what was read, and a line for every problem."""

    folder: Path
    step: int
    files: int
    pieces: int
    nbytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One parameter: its master's shape and type, the kinds there are, the bytes of all."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kinds: tuple[str, ...]
    pieces: int
    nbytes: int


def verify(folder: str | os.PathLike[str]) -> Report:
    """Reads every byte of a checkpoint and compares hashes, headers and sizes.

    Raises CheckpointError only where the manifest itself cannot be read.
    """
    folder = Path(folder)
    manifest = Manifest.decode(_manifest_bytes(folder), folder / FILE_NAME)
    problems = []
    try:
        reader = Reader(folder)
    except CheckpointError as error:
        return Report(folder, manifest.step, len(manifest.file_ends()), 0, 0, (str(error),))
    count = nbytes = 0
    for array in manifest.arrays.values():
        for piece in array.pieces:
            count, nbytes = count + 1, nbytes + piece.length * array.item.itemsize
            try:
                reader.verify_piece(array, piece)
            except CheckpointError as error:
                problems.append(str(error))
    problems += _header_problems(folder, manifest)
    return Report(folder, manifest.step, len(manifest.file_ends()), count, nbytes, tuple(problems))


def summary(folder: Path) -> tuple[Manifest, list[Row]]:
    """The manifest, and a row for each name in it."""
    manifest = Manifest.read(folder)
    by_name: dict[str, list[Array]] = {}
    for array in manifest.arrays.values():
        by_name.setdefault(array.name, []).append(array)
    rows = []
    for name, arrays in by_name.items():
        first = next((a for a in arrays if a.kind in ("master", "buffer")), arrays[0])
        kinds = tuple(a.kind for a in arrays)
        nbytes = sum(a.size * a.item.itemsize for a in arrays)
        pieces = sum(len(a.pieces) for a in arrays)
        rows.append(Row(name, first.shape, first.dtype, kinds, pieces, nbytes))
    return manifest, rows


def _manifest_bytes(folder: Path) -> bytes:
    try:
        return (folder / FILE_NAME).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / FILE_NAME}: {error.strerror}") from None


def _header_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Where the files' own headers do not say what the manifest says."""
    headers = {}
    for name in sorted(manifest.file_ends()):
        try:
            headers[name] = read_header(folder / name)
        except (OSError, CheckpointError) as error:
            yield str(error)
    for key, array in manifest.arrays.items():
        for piece in array.pieces:
            expected = (SAFETENSORS_NAMES[array.item], (piece.length,), piece.offset)
            found = headers.get(piece.file, {}).get(f"{key}@{piece.start}")
            if piece.file in headers and found != expected:
                yield f"{folder / piece.file}: {key}@{piece.start} is {found}, expected {expected}"
