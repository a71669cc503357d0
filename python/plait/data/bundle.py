"""A bundle: the files that make up a prepared dataset, and how a rank knows it sees the same ones.

Its digest covers the sizes and evenly spaced blocks of every file, so it costs the same for a
megabyte and a terabyte; two bundles of equal sizes that differ only between the blocks look alike.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCKS = 1024  # read of each file, spread from its first byte to its last
_BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Bundle:
    """files: name -> (path, bytes). meta: what JSON can hold. fingerprint: hash of the content."""

    files: dict[str, tuple[str, int]]
    meta: dict[str, Any]
    digest: str
    fingerprint: str

    def path(self, name: str) -> Path:
        return Path(self.files[name][0])

    def visible(self) -> bool:
        """Does this rank see the same files at the same paths?"""
        try:
            return sampled_digest(self.files) == self.digest
        except OSError:
            return False


def sampled_digest(files: dict[str, tuple[str, int]]) -> str:
    """Raises OSError where a file is missing or not of its size."""
    digest = hashlib.sha256()
    for name in sorted(files):
        path, size = files[name]
        digest.update(f"{name}\0{size}\0".encode())
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                raise OSError(f"{path} is not {size} bytes")
            for start in _block_starts(size):
                file.seek(start)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _block_starts(size: int) -> list[int]:
    if size <= _BLOCKS * _BLOCK_BYTES:
        return list(range(0, size, _BLOCK_BYTES))
    last = size - _BLOCK_BYTES
    return [last * block // (_BLOCKS - 1) for block in range(_BLOCKS)]
