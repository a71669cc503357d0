"""Files of JSON, one object a line: whole lines only, whole files only."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO


def line(row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON; NaN and infinity become null."""
    return json.dumps(_plain(row), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _plain(value: Any) -> Any:
    """value in the types of JSON: numpy scalars as numbers, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append(file: BinaryIO, row: Mapping[str, Any]) -> None:
    """Writes a row at the end of an unbuffered file. Raises OSError."""
    data = memoryview(line(row))
    while data:
        data = data[file.write(data) :]


def trim_last_line(path: Path) -> None:
    """Cuts off what follows the last newline: a kill came while it was written."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """Replaces a file by a new one in one move."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
