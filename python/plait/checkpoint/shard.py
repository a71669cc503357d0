"""One rank's file: safetensors, written and hashed in one pass, read in a stream.

The format is eight bytes of header length, a JSON header, then the arrays without holes. Reading
copies through a small buffer, so a damaged disk or a file cut short is an error and not a signal.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .piece import SAFETENSORS_NAMES, CheckpointError, Piece, bytes_of

CHUNK = 4 << 20
_ALIGNMENT = 64


@dataclass(frozen=True)
class Tensor:
    """An array of a file to be written: `fill` gives its bytes in chunks, in order."""

    key: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fill: Callable[[], Iterator[memoryview]]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def write_file(path: Path, tensors: Sequence[Tensor], metadata: dict[str, str]) -> list[int]:
    """Writes a new safetensors file and syncs it; returns the offset of each array in the file.

    Raises OSError; FileExistsError where the file is there already.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    position, starts = 0, [0] * len(tensors)
    # large items first keeps every array aligned to its own items
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].dtype.itemsize)
    for i in order:
        tensor, starts[i] = tensors[i], position
        position += tensor.nbytes
        header[tensor.key] = {
            "dtype": SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [starts[i], position],
        }
    assert len(header) == len(tensors) + 1, "two arrays of one file have the same key"
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for i in order:
            for chunk in tensors[i].fill():
                file.write(chunk)
        assert file.tell() == 8 + len(text) + position, "an array gave too few or too many bytes"
        file.flush()
        os.fsync(file.fileno())
    return [8 + len(text) + start for start in starts]


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Array name -> (safetensors type, shape, offset in the file). Raises CheckpointError."""
    with open(path, "rb") as file:
        try:
            length = int.from_bytes(file.read(8), "little")
            if length > os.fstat(file.fileno()).st_size:
                raise ValueError(f"the header claims {length} bytes")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            return {
                key: (item["dtype"], tuple(item["shape"]), 8 + length + item["data_offsets"][0])
                for key, item in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from None


def stream(file: IO[bytes], offset: int, length: int) -> Iterator[tuple[int, memoryview]]:
    """The bytes [offset, offset + length) as (offset from the first, bytes); raises EOFError."""
    buffer = memoryview(bytearray(min(CHUNK, length)))
    done = 0
    while done < length:
        count = os.preadv(file.fileno(), [buffer[: min(CHUNK, length - done)]], offset + done)
        if count == 0:
            raise EOFError(f"ends after {done} of {length} bytes from byte {offset}")
        yield done, buffer[:count]
        done += count


def digest(file: IO[bytes], offset: int, length: int) -> str:
    """The SHA-256 of a range of a file, in hex."""
    found = hashlib.sha256()
    for _, chunk in stream(file, offset, length):
        found.update(chunk)
    return found.hexdigest()


def write_pieces(
    path: Path, pieces: Sequence[Piece], metadata: dict[str, str]
) -> list[tuple[int, str]]:
    """Writes a file of pieces, reads it back from the disk; (offset, SHA-256) of each piece."""
    hashes = [hashlib.sha256() for _ in pieces]
    tensors = [
        Tensor(
            f"{piece.key}@{piece.start}", piece.dtype, (piece.array.size,), _filler(piece.array, h)
        )
        for piece, h in zip(pieces, hashes)
    ]
    if len({tensor.key for tensor in tensors}) < len(tensors):
        keys = sorted(tensor.key for tensor in tensors)
        twice = next(a for a, b in pairwise(keys) if a == b)
        raise ValueError(f"this rank gave the piece {twice} twice")
    offsets = write_file(path, tensors, metadata)
    with open(path, "rb") as file:
        _drop_cache(file)
        for piece, offset, expected in zip(pieces, offsets, hashes):
            found = digest(file, offset, piece.array.nbytes)
            if found != expected.hexdigest():
                raise CheckpointError(
                    f"{path}: {piece.key}@{piece.start} reads back with SHA-256 {found}, not "
                    f"{expected.hexdigest()} as written: the disk or the memory is faulty"
                )
    return [(offset, h.hexdigest()) for offset, h in zip(offsets, hashes)]


def _filler(array: npt.NDArray[Any], found: Any) -> Callable[[], Iterator[memoryview]]:
    def fill() -> Iterator[memoryview]:
        data = bytes_of(array)
        for start in range(0, len(data), CHUNK):
            chunk = data[start : start + CHUNK]
            found.update(chunk)
            yield chunk

    return fill


def _drop_cache(file: IO[bytes]) -> None:
    """Makes the next read come from the disk, where the system knows how."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
