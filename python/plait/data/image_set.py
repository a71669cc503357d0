"""Labelled images as a dataset: read once, kept in the cache as they are, normalised per batch.

The mean and the standard deviation of each channel are those of the training part.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.data.bundle import Bundle
from plait.data.cache import identity, key_of, obtain
from plait.data.dataset import Array, Comm, Dataset, check_indices, not_prepared, reading
from plait.data.image_files import find_images
from plait.data.image_write import write_images
from plait.data.share import build_once
from plait.errors import UserError

_VERSION = 2
_UNMAPPED_BYTES = 1 << 12  # files up to this size are read: an empty array cannot be mapped


class ImageDataset(Dataset):
    """Training or held-out images of a source."""

    kind = "images"

    def __init__(self, source: "ImageSource", part: str = "training") -> None:
        self._source, self._part = source, part

    def prepare(self, comm: Comm | None = None) -> None:
        self._source.prepare(comm)

    @property
    def held_out(self) -> "ImageDataset | None":
        return ImageDataset(self._source, "held_out") if self._part == "training" else None

    @property
    def samples(self) -> int:
        return len(self._source.ready.labels[self._part])

    @property
    def classes(self) -> int:
        return int(self._source.ready.bundle.meta["classes"])

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._source.ready.images[self._part].shape[1:]

    @property
    def input_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def fingerprint(self) -> str:
        return self._source.ready.bundle.fingerprint

    def batch(self, indices: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        ready = self._source.ready
        check_indices(indices, self.samples)
        x = ready.images[self._part][indices].astype(np.float32)
        x -= np.array(ready.bundle.meta["mean"], np.float32)
        x *= np.array(ready.bundle.meta["scale"], np.float32)
        return x, np.array(ready.labels[self._part][indices], np.int32)


@dataclass(frozen=True)
class _Ready:
    bundle: Bundle
    images: dict[str, Array]  # by part: (n, H, W, C), bytes or float32
    labels: dict[str, Array]  # by part: (n,) int32


class ImageSource:
    """path and image_size as in data.images; shared by a dataset and its held-out part."""

    def __init__(self, path: str, image_size: int) -> None:
        if image_size < 0:
            raise UserError(f"image_size = {image_size} must be 0 or a side in pixels")
        self._name = f"images {path!r}"
        self._path, self._image_size = path, image_size
        self._ready: _Ready | None = None

    @property
    def ready(self) -> _Ready:
        if self._ready is None:
            raise not_prepared(self._name)
        return self._ready

    def prepare(self, comm: Comm | None) -> None:
        if self._ready is None:
            bundle = build_once(comm, self._build)
            parts = ("training", "held_out")
            images = {part: _map(bundle.path(f"{part}_images.npy")) for part in parts}
            labels = {part: _map(bundle.path(f"{part}_labels.npy")) for part in parts}
            self._ready = _Ready(bundle, images, labels)

    def _build(self) -> Bundle:
        with reading(self._name):
            found = find_images(self._path, self._image_size)
            size, digest = identity(found.files)

        def write(folder: Path) -> dict[str, Any]:
            with reading(self._name):
                parts = found.read(folder)
            return write_images(folder, parts, self._name)

        key = key_of("images", _VERSION, self._image_size, digest)
        return obtain(key, write, f"reading {self._name}, {size / 1e6:.1f} MB (once)")


def _map(path: Path) -> Array:
    small = path.stat().st_size <= _UNMAPPED_BYTES
    array: Array = np.load(path, mmap_mode=None if small else "r", allow_pickle=False)
    return array
