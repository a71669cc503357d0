"""Reading labelled images: IDX files, .npz archives, folders by class, and two named sets.

Every reader gives a training part and, where the files have one, a held-out part. Files are mapped,
compressed ones after they were unpacked to the disk: a set may be larger than memory.
"""

import gzip
import importlib.util
import math
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.data.dataset import no_file
from plait.data.image_folder import Pictures, list_pictures, open_pictures
from plait.errors import UserError

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
NAMES = ("fashion-mnist", "digits")
_IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_NPZ_TRAINING = (("x_train", "y_train"), ("x", "y"))
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Part:
    """images: (n, H, W) or (n, H, W, C), as numbers or as pictures still to decode; labels (n,)."""

    images: npt.NDArray[Any] | Pictures
    labels: npt.NDArray[Any]


@dataclass(frozen=True)
class Parts:
    """classes: 0 where it follows from the labels. If there is no held-out part, every
    `held_out_every`th image is held out."""

    training: Part
    held_out: Part | None
    classes: int = 0
    held_out_every: int = 20


@dataclass(frozen=True)
class Found:
    """files: (name, path) of all that is read; read: reads it, raising UserError or OSError; it
    unpacks to a folder that it is given."""

    files: list[tuple[str, str]]
    read: Callable[[Path], Parts]


def find_images(path: str, image_size: int) -> Found:
    """Which reader a path or a name asks for. Raises UserError where there is none."""
    if path == "digits":
        return _find_digits()
    if path == "fashion-mnist":
        if not os.path.isdir(FASHION_MNIST):
            raise UserError(
                f"images 'fashion-mnist': no folder {FASHION_MNIST}; install it with apt install "
                "dataset-fashion-mnist, or give the folder that holds its four IDX files"
            )
        path = FASHION_MNIST
    if os.path.isdir(path):
        return _find_idx(path) or _find_pictures(path, image_size)
    if os.path.isfile(path):
        if not path.endswith(".npz"):
            raise UserError(
                f"images {path!r}: a file must be an .npz with x and y (or x_train, y_train, "
                "x_test, y_test); IDX files and pictures are given by their folder"
            )
        return Found([(os.path.basename(path), path)], lambda scratch: _read_npz(path, scratch))
    raise UserError(
        f"{no_file(f'images {path!r}', path)}; give a file, a folder or a named set: "
        f"{', '.join(NAMES)}"
    )


def read_idx(path: str, scratch: Path) -> npt.NDArray[Any]:
    """The array in an IDX file, gzipped or not. Raises UserError where it is damaged."""
    try:
        with open(path, "rb") as raw:
            if path.endswith(".gz"):
                with gzip.open(raw) as packed, _unpacked(packed, scratch) as file:
                    return _map_idx(file, path)
            return _map_idx(raw, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or cut short: {error}") from error


def _map_idx(file: Any, path: str) -> npt.NDArray[Any]:
    start, size = file.read(4), os.fstat(file.fileno()).st_size
    dimensions = start[3] if len(start) == 4 else 0
    header = 4 + 4 * dimensions
    if start[:2] != b"\0\0" or not dimensions or size < header:
        raise UserError(f"{path} is no IDX file: it starts with {start.hex() or 'nothing'}")
    if start[2] not in _IDX_DTYPES:
        raise UserError(f"{path} is no IDX file: element type {start[2]} is unknown")
    dtype = np.dtype(_IDX_DTYPES[start[2]])
    shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
    needed = header + math.prod(shape) * dtype.itemsize
    if size != needed:
        raise UserError(
            f"{path} has {size} bytes; its header says {needed} "
            f"({' x '.join(map(str, shape))} of {dtype.itemsize} bytes): fetch it again"
        )
    if size == header:
        return np.empty(shape, dtype)  # nothing to map
    return np.memmap(file, dtype, "r", header, shape)


@contextmanager
def _unpacked(packed: Any, scratch: Path) -> Iterator[Any]:
    """A file without a name on the disk of `scratch`, with what `packed` holds."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        shutil.copyfileobj(packed, file, _BLOCK_BYTES)
        file.seek(0)
        yield file


def _find_idx(root: str) -> Found | None:
    paths = [
        _first(root, f"{part}-{what}")
        for part in ("train", "t10k")
        for what in ("images", "labels")
    ]
    images, labels, held_out_images, held_out_labels = paths
    if images is None:
        return None
    if labels is None or (held_out_images is None) != (held_out_labels is None):
        part = "train" if labels is None else "t10k"
        raise UserError(f"images {root!r}: {part} has images or labels only; both are needed")

    def both(images: str, labels: str, scratch: Path) -> Part:
        return Part(read_idx(images, scratch), read_idx(labels, scratch))

    def read(scratch: Path) -> Parts:
        held_out = None
        if held_out_images is not None and held_out_labels is not None:
            held_out = both(held_out_images, held_out_labels, scratch)
        return Parts(both(images, labels, scratch), held_out)

    return Found([(os.path.basename(path), path) for path in paths if path], read)


def _first(root: str, stem: str) -> str | None:
    """train-images-idx3-ubyte, train-images.idx3-ubyte, either with .gz: the first there is."""
    kind = "idx3-ubyte" if stem.endswith("images") else "idx1-ubyte"
    names = [f"{stem}{dot}{kind}{suffix}" for dot in "-." for suffix in ("", ".gz")]
    paths = [os.path.join(root, name) for name in names]
    return next((path for path in paths if os.path.isfile(path)), None)


def _find_pictures(root: str, image_size: int) -> Found:
    listing = list_pictures(root)

    def read(scratch: Path) -> Parts:
        training, held_out = open_pictures(listing, image_size)
        labels = [
            np.array([label for _, label in part], np.int32)
            for part in (listing.training, listing.held_out)
        ]
        kept = Part(held_out, labels[1]) if held_out is not None else None
        return Parts(Part(training, labels[0]), kept, len(listing.classes))

    return Found(listing.files(), read)


def _read_npz(path: str, scratch: Path) -> Parts:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            names = next((pair for pair in _NPZ_TRAINING if pair[0] in members), None)
            if (
                names is None
                or names[1] not in members
                or ("x_test" in members) != ("y_test" in members)
            ):
                raise UserError(
                    f"{path} holds {', '.join(sorted(members)) or 'nothing'}: it needs x and y, or "
                    "x_train and y_train, and if anything x_test and y_test both"
                )
            x, y, *held_out = (
                _map_member(archive, members[name], scratch)
                for name in (*names, "x_test", "y_test")
                if name in members
            )
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        # numpy's advice would be to unpickle it
        raise UserError(f"{path} is damaged, cut short or no .npz file of numbers") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise UserError(f"{path} is damaged, cut short or no .npz file: {error}") from error
    return Parts(Part(x, y), Part(*held_out) if held_out else None)


def _map_member(archive: zipfile.ZipFile, name: str, scratch: Path) -> npt.NDArray[Any]:
    with archive.open(name) as packed, _unpacked(packed, scratch) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        if math.prod(shape) == 0 or not shape:
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
        start = file.tell()
        return np.memmap(file, dtype, "r", start, shape, "F" if fortran_order else "C")


def _find_digits() -> Found:
    spec = importlib.util.find_spec("sklearn")  # found, not imported: that takes seconds
    roots = list(spec.submodule_search_locations or []) if spec else []
    paths = [os.path.join(root, "datasets", "data", "digits.csv.gz") for root in roots]
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path is None:
        raise UserError(
            "images 'digits' are in the scikit-learn package, which is not installed: "
            "pip install scikit-learn (--no-deps is enough)"
        )

    def read(scratch: Path) -> Parts:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float64)
        pixels = table[:, :-1].astype(np.uint8).reshape(-1, 8, 8)
        return Parts(Part(pixels, table[:, -1].astype(np.int32)), None, 10, held_out_every=5)

    return Found([("digits.csv.gz", path)], read)
