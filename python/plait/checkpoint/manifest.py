"""What a checkpoint holds: every array with its pieces, their files, offsets and hashes.

manifest.json is written last; a folder without a whole one is no checkpoint. Its own checksum is
the SHA-256 of the same JSON with an empty checksum.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from plait.report.text import bytes_text

from .piece import DTYPES, AccessError, CheckpointError

FORMAT = 1
FILE_NAME = "manifest.json"
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Stored(msgspec.Struct, frozen=True):
    """A piece on disk: `length` elements from `start` of the array, at byte `offset` of file."""

    start: int
    length: int
    file: str
    offset: int
    sha256: str


class Array(msgspec.Struct, frozen=True):
    """A global array and the pieces that cover it, in order."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Stored, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def item(self) -> np.dtype[Any]:
        found: np.dtype[Any] = DTYPES[self.dtype]
        return found

    def gap(self) -> str | None:
        """What is wrong with the pieces' cover of [0, size); None where they fit exactly."""
        position = 0
        for piece in self.pieces:
            if piece.start > position:
                return f"elements {position} to {piece.start} are in no piece"
            if piece.start < position or piece.length < 1:
                return f"elements from {piece.start} are in two pieces"
            position = piece.start + piece.length
        if position != self.size:
            return f"elements {position} to {self.size} are in no piece"
        return None


class Manifest(msgspec.Struct, frozen=True):
    """A checkpoint: `arrays` by kind/name, `metadata` as the trainer gave it."""

    format: int
    plait: str
    step: int
    metadata: dict[str, Any]
    arrays: dict[str, Array]
    checksum: str = ""

    def encode(self) -> bytes:
        """The JSON of the file. Raises ValueError where the metadata does not survive JSON."""
        try:
            data = _encode(msgspec.structs.replace(self, checksum=self._sum()))
        except TypeError as error:
            raise ValueError(f"the checkpoint's metadata is no JSON: {error}") from None
        if Manifest.decode(data, "the new manifest").metadata != self.metadata:
            raise ValueError(
                "the checkpoint's metadata would change in JSON: give only dicts with text keys, "
                f"lists, text, numbers, true, false, None; got {self.metadata}"
            )
        return data

    def _sum(self) -> str:
        return hashlib.sha256(_encode(msgspec.structs.replace(self, checksum=""))).hexdigest()

    @staticmethod
    def decode(data: bytes, path: object) -> "Manifest":
        """Raises CheckpointError naming path."""
        try:
            version = msgspec.json.decode(data, type=_Version).format
            if version != FORMAT:
                raise CheckpointError(
                    f"{path} has format {version}, this plait reads format {FORMAT}: "
                    "load it with the plait that wrote it"
                )
            manifest = msgspec.json.decode(data, type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from None
        if manifest.checksum != manifest._sum():
            raise CheckpointError(f"{path} is damaged or was edited: its checksum does not fit")
        for key, array in manifest.arrays.items():
            if array.dtype not in DTYPES or (fault := array.gap()):
                fault = fault if array.dtype in DTYPES else f"unknown type {array.dtype}"
                raise CheckpointError(f"{path} is damaged: {key}: {fault}")
        return manifest

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """The manifest of a checkpoint whose files are there with their sizes.

        Raises CheckpointError, of its kinds AccessError where the disk refuses to tell; hashes are
        the reader's business.
        """
        path = folder / FILE_NAME
        try:
            data = path.read_bytes()
        except _MISSING:
            raise CheckpointError(f"{folder} is no complete checkpoint: no {FILE_NAME}") from None
        except OSError as error:
            raise AccessError(f"{path} cannot be read: {error.strerror}") from None
        manifest = Manifest.decode(data, path)
        manifest.check_files(folder)
        return manifest

    def file_ends(self) -> dict[str, int]:
        """File name -> how long it must be at least, in bytes."""
        ends: dict[str, int] = {}
        for array in self.arrays.values():
            for piece in array.pieces:
                end = piece.offset + piece.length * array.item.itemsize
                ends[piece.file] = max(ends.get(piece.file, 0), end)
        return ends

    def check_files(self, folder: Path) -> None:
        """Raises CheckpointError for the first file that is missing or too short."""
        for name, needed in sorted(self.file_ends().items()):
            try:
                found = (folder / name).stat().st_size
            except _MISSING:
                raise CheckpointError(f"{folder / name} cannot be found: it is missing") from None
            except OSError as error:
                raise AccessError(f"{folder / name} cannot be read: {error.strerror}") from None
            if found < needed:
                raise CheckpointError(
                    f"{folder / name} is truncated: {found} bytes ({bytes_text(found)}), "
                    f"expected {needed} ({bytes_text(needed)})"
                )

    @property
    def nbytes(self) -> int:
        return sum(array.size * array.item.itemsize for array in self.arrays.values())


class _Version(msgspec.Struct):
    format: int


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)
