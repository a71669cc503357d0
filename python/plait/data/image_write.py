"""Writing labelled images into a cache entry: checked, split, in blocks, with their statistics.

Bytes stay bytes, everything else becomes float32; the sums over bytes are exact integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.data.image_files import Part, Parts
from plait.data.image_folder import Pictures
from plait.errors import UserError

_BLOCK_BYTES = 1 << 22
_Pixels = npt.NDArray[Any]  # (n, H, W, C)


def write_images(folder: Path, parts: Parts, name: str) -> dict[str, Any]:
    """training_images.npy, training_labels.npy, the same for held_out; returns the entry's meta.

    Raises UserError for images or labels that do not fit together; OSError is about the folder.
    """
    training = _checked(parts.training, f"{name}, training part")
    if not len(training.labels):
        raise UserError(f"{name} is empty: it has no training image")
    if parts.held_out is None:
        held = np.arange(len(training.labels)) % parts.held_out_every == parts.held_out_every - 1
        training, held_out = (training.of(np.flatnonzero(x)) for x in (~held, held))
    else:
        held_out = _checked(parts.held_out, f"{name}, held-out part")
    if held_out.row != training.row:
        raise UserError(
            f"{name}: held-out images are {held_out.row}, training images {training.row} "
            "(height, width, channels, type); they must be alike"
        )
    classes = parts.classes or int(training.labels.max()) + 1
    for part in (training, held_out):
        if part.labels.size and part.labels.max() >= classes:
            raise UserError(
                f"{name}: label {part.labels.max()} is outside the {classes} classes "
                "(0 to the largest training label)"
            )
    statistics = _Statistics()
    _write(folder / "training_images.npy", training, name, statistics)
    _write(folder / "held_out_images.npy", held_out, name, None)
    np.save(folder / "training_labels.npy", training.labels)
    np.save(folder / "held_out_labels.npy", held_out.labels)
    mean, scale = statistics.mean_and_scale()
    return {"classes": classes, "mean": mean, "scale": scale}


@dataclass(frozen=True)
class _Chosen:
    """Rows of a part's images, with what type they are stored as; the images may be mapped, and
    larger than memory."""

    images: _Pixels | Pictures
    labels: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]
    dtype: np.dtype[Any]

    @property
    def row(self) -> tuple[object, ...]:
        return (*self.images.shape[1:], self.dtype.name)

    def of(self, rows: npt.NDArray[np.int64]) -> _Chosen:
        return replace(self, rows=self.rows[rows], labels=self.labels[rows])


def _checked(part: Part, name: str) -> _Chosen:
    labels, images = part.labels, part.images
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
        raise UserError(
            f"{name}: labels are {labels.dtype} of shape {part.labels.shape}, smallest "
            f"{labels.min() if labels.size else 'none'}: they must be integers from 0 on, one each"
        )
    if labels.size and labels.max() >= 1 << 31:
        raise UserError(f"{name}: label {labels.max()} is too large")
    if not isinstance(images, Pictures):
        images = _with_channels(images, name)
    if images.shape[0] != len(labels):
        raise UserError(f"{name}: {images.shape[0]} images and {len(labels)} labels")
    return _Chosen(images, labels.astype(np.int32), np.arange(len(labels)), _dtype(images))


def _with_channels(images: _Pixels, name: str) -> _Pixels:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.dtype.kind not in "biuf" or 0 in images.shape[1:]:
        raise UserError(
            f"{name}: images are {images.dtype} of shape {images.shape}: they must be numbers of "
            "shape (n, height, width) or (n, height, width, channels)"
        )
    if images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise UserError(
            f"{name}: images of shape {images.shape} look channels first: "
            "transpose them to (n, height, width, channels)"
        )
    return images


def _dtype(images: _Pixels | Pictures) -> np.dtype[Any]:
    """Bytes where all pixels are whole numbers from 0 to 255, else float32."""
    if isinstance(images, Pictures) or images.dtype.kind == "b" or images.dtype == np.uint8:
        return np.dtype(np.uint8)
    whole = images.dtype.kind in "iu" and images.size and images.min() >= 0
    return np.dtype(np.uint8 if whole and images.max() < 256 else np.float32)


def _write(path: Path, chosen: _Chosen, name: str, statistics: _Statistics | None) -> None:
    dtype, done = chosen.dtype, 0
    shape = (len(chosen.rows), *chosen.images.shape[1:])
    with open(path, "xb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": dtype.str, "fortran_order": False, "shape": shape}
        )
        for block in _blocks(chosen):
            with np.errstate(over="ignore"):
                block = np.ascontiguousarray(block, dtype)
            if dtype == np.float32 and not np.isfinite(block).all():
                bad = np.flatnonzero(~np.isfinite(block).all((1, 2, 3)))[0]
                raise UserError(f"{name}: image {done + bad} has a pixel that is not finite")
            if statistics is not None:
                statistics.add(block)
            file.write(block.data)
            done += len(block)


def _blocks(chosen: _Chosen) -> Iterator[_Pixels]:
    images = chosen.images
    count = max(1, _BLOCK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(chosen.rows), count):
        rows = chosen.rows[start : start + count]
        if isinstance(images, Pictures):
            yield np.stack(list(images.decoded(rows.tolist())))
        else:
            yield images[rows]


class _Statistics:
    """Sums per channel: of a histogram for bytes, of float64 in order of blocks otherwise."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: Any = 0
        self._squares: Any = 0

    def add(self, block: _Pixels) -> None:
        pixels = block.reshape(-1, block.shape[-1])
        self._count += len(pixels)
        if block.dtype == np.uint8:
            values = np.arange(256)
            counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
            self._sums = self._sums + counts @ values
            self._squares = self._squares + counts @ values**2
        else:
            wide = pixels.astype(np.float64)
            self._sums = self._sums + wide.sum(0)
            self._squares = self._squares + (wide * wide).sum(0)

    def mean_and_scale(self) -> tuple[list[float], list[float]]:
        """Mean and 1 / standard deviation of each channel; 1 for a channel of one value."""
        mean = self._sums / self._count
        variance = np.maximum(self._squares / self._count - mean * mean, 0.0)
        deviation = np.sqrt(np.where(variance > 1e-12 * (1 + mean * mean), variance, 1.0))
        return list(map(float, mean)), list(map(float, 1.0 / deviation))
