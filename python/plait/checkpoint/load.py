"""Loading: every rank fills its pieces, whatever layout wrote the checkpoint."""

import traceback
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .manifest import Manifest
from .piece import CheckpointError, Comm, Piece, where
from .reader import Reader

_SHOWN = 5


def load(folder: Path, pieces: Iterable[Piece], comm: Comm) -> Manifest:
    """Fills the pieces of all ranks from a checkpoint and returns its manifest. Collective.

    Pieces may overlap: replicas all read. Names, shapes and types must be those of the checkpoint,
    and together the ranks must ask for all its arrays. Raises the same CheckpointError on every
    rank; the pieces' contents are then undefined.
    """
    own = list(pieces)
    reader, error = None, None
    try:
        reader = Reader(folder)
    except CheckpointError as fault:
        error = f"{where(comm)}: {fault}"
    _agree(comm, error)
    assert reader is not None
    _check_model(reader, own, comm)
    try:
        for piece in own:
            piece.check()
            reader.read_into(piece.array, piece.name, piece.kind, piece.start)
    except ValueError as fault:
        error = f"{where(comm)}: {fault}"
    except Exception:  # the other ranks wait: they must hear of it
        error = f"{where(comm)}:\n{traceback.format_exc()}"
    _agree(comm, error)
    return reader.manifest


def _agree(comm: Comm, error: str | None) -> None:
    """Raises the first rank's error on every rank, if there is one."""
    found = comm.gather_object(error)
    first = next((e for e in found if e is not None), None) if found is not None else None
    first = comm.broadcast_object(first)
    if first is not None:
        raise CheckpointError(first.removeprefix(f"{where(comm)}: ") if comm.size == 1 else first)


def _check_model(reader: Reader, own: list[Piece], comm: Comm) -> None:
    """Raises CheckpointError on every rank where the checkpoint is of another model."""
    arrays = reader.manifest.arrays
    keys = list(arrays)
    wanted = np.zeros(len(keys), np.int64)
    index = {key: i for i, key in enumerate(keys)}
    differences = []
    for key, piece in {piece.key: piece for piece in own}.items():
        if key not in arrays:
            differences.append(f"{key}: in the model, not in the checkpoint")
            continue
        wanted[index[key]] = 1
        found, asked = arrays[key], (tuple(piece.shape), piece.dtype.name)
        if (found.shape, found.dtype) != asked:
            differences.append(
                f"{key}: {found.dtype} {found.shape} in the checkpoint, "
                f"{asked[1]} {asked[0]} in the model"
            )
    lists = comm.gather_object(differences)
    asked_for = comm.all_reduce(wanted, op="max")
    text = None
    if lists is not None:
        found_all = dict.fromkeys(line for lines in lists for line in lines)
        only = [key for key, asked in zip(keys, asked_for) if not asked]
        lines = [*found_all, *(f"{key}: in the checkpoint, not in the model" for key in only)]
        if lines:
            more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            text = "\n  ".join(
                [
                    f"{reader.folder} is of another model or optimizer "
                    f"({len(lines)} of {len(set(keys) | {p.key for p in own})} arrays differ):",
                    *lines[:_SHOWN],
                    *more,
                    "go on with the config it was written with, or give this run another name",
                ]
            )
    text = comm.broadcast_object(text)
    if text is not None:
        raise CheckpointError(text)
