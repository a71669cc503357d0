"""One safetensors file of whole arrays by name, for use outside plait."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from plait.report.text import bytes_text

from .manifest import Array
from .piece import CheckpointError, bytes_of
from .reader import Reader
from .shard import CHUNK, Tensor, write_file

_EXPORTED = ("master", "buffer")  # what a model computes with; the optimizer's moments stay


def export(folder: Path, out: Path) -> int:
    """Writes the master weights and buffers of a checkpoint; returns the file's length in bytes.

    Needs little memory: arrays are copied in chunks. Raises CheckpointError where out exists, the
    checkpoint is damaged, or out cannot be written; out is then not there.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists: give another name, or remove it first")
    reader = Reader(folder)
    arrays = [array for array in reader.manifest.arrays.values() if array.kind in _EXPORTED]
    names = [array.name for array in arrays]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{folder}: a weight and a buffer have the same name")
    tensors = [Tensor(a.name, a.item, a.shape, _filler(reader, a)) for a in arrays]
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        write_file(temporary, tensors, {"plait_step": str(reader.step)})
        os.rename(temporary, out)
    except OSError as error:
        raise CheckpointError(
            f"{out} cannot be written: {error.strerror} "
            f"({bytes_text(sum(tensor.nbytes for tensor in tensors))} needed)"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return out.stat().st_size


def _filler(reader: Reader, array: Array) -> Callable[[], Iterator[memoryview]]:
    def fill() -> Iterator[memoryview]:
        count = max(1, CHUNK // array.item.itemsize)
        for start in range(0, array.size, count):
            part = reader.read(array.name, array.kind, start, min(start + count, array.size))
            yield bytes_of(part)

    return fill
