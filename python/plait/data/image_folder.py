"""Folders of pictures by class: CLASS/*.png, or train/CLASS/*.png beside test/CLASS/*.png.

Decoded with Pillow one at a time, so that a set larger than memory can be written to the cache.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_HELD_OUT = ("test", "val", "validation", "held_out")
_GREY = frozenset({"1", "L"})


@dataclass(frozen=True)
class Listing:
    """Pictures by relative name and label; held_out is empty where the folder has no such part."""

    root: str
    classes: tuple[str, ...]
    training: tuple[tuple[str, int], ...]
    held_out: tuple[tuple[str, int], ...]

    def files(self) -> list[tuple[str, str]]:
        return [(name, os.path.join(self.root, name)) for name, _ in self.training + self.held_out]


def list_pictures(root: str) -> Listing:
    """Raises UserError where there are no classes or no pictures, or a held-out class is new."""
    training_root = "train" if os.path.isdir(os.path.join(root, "train")) else ""
    held_out_roots = [part for part in _HELD_OUT if os.path.isdir(os.path.join(root, part))]
    classes = _folders(os.path.join(root, training_root))
    training = _labelled(root, training_root, classes)
    if not training:
        raise UserError(
            f"images {root!r}: no pictures by class (CLASS/*.png or train/CLASS/*.png), no IDX "
            "files (train-images-idx3-ubyte) in this folder"
        )
    held_out: list[tuple[str, int]] = []
    if training_root and held_out_roots:
        part = held_out_roots[0]
        for name in _folders(os.path.join(root, part)):
            if name not in classes:
                raise UserError(
                    f"images {root!r}: class {name!r} of {part}/ is not among the "
                    f"{len(classes)} classes of train/"
                )
        held_out = _labelled(root, part, classes)
    return Listing(root, tuple(classes), tuple(training), tuple(held_out))


@dataclass(frozen=True)
class Pictures:
    """Files to decode, all of one size (pixels) and number of channels (1 or 3)."""

    paths: tuple[str, ...]
    size: tuple[int, int]  # height, width
    channels: int
    resize: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.paths), *self.size, self.channels)

    def decoded(self, rows: Iterable[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Some pictures (H, W, C); resizing scales each to cover the square and cuts its
        centre."""
        library = _pillow()
        for path in (self.paths[row] for row in rows):
            try:
                with library.open(path) as picture:
                    image = picture.convert("L" if self.channels == 1 else "RGB")
                    if self.resize:
                        image = _covering(image, self.size[0])
                    pixels = np.asarray(image, np.uint8)
            except OSError as error:
                raise UserError(f"picture {path} cannot be decoded: {error}") from error
            yield pixels.reshape(*self.size, self.channels)


def open_pictures(listing: Listing, image_size: int) -> tuple[Pictures, Pictures | None]:
    """Reads every header: grey only if all are grey. image_size 0 needs them all of one size.

    Raises UserError for sizes that differ, a file that is no picture, or without Pillow.
    """
    library = _pillow()
    size, first, grey = (image_size, image_size), "", True
    for _, path in listing.files():
        try:
            with library.open(path) as picture:
                if picture.mode[0] in "IF":
                    raise UserError(
                        f"picture {path} has more than 8 bits a pixel (mode {picture.mode}), which "
                        "would be cut off: save it with 8, or put the pixels into an .npz"
                    )
                grey = grey and picture.mode in _GREY
                found = (picture.height, picture.width)
        except OSError as error:
            raise UserError(f"picture {path} cannot be read: {error}") from error
        if not image_size:
            if first and found != size:
                raise UserError(
                    f"picture {path} is {found[0]} x {found[1]}, {first} is {size[0]} x {size[1]}: "
                    "give image_size = N to scale and cut all to N x N"
                )
            size, first = found, path
    parts = [
        Pictures(
            tuple(os.path.join(listing.root, name) for name, _ in part),
            size,
            1 if grey else 3,
            bool(image_size),
        )
        for part in (listing.training, listing.held_out)
    ]
    return parts[0], parts[1] if listing.held_out else None


def _covering(image: Any, side: int) -> Any:
    scale = side / min(image.size)
    wide = [max(side, round(length * scale)) for length in image.size]
    left, top = (wide[0] - side) // 2, (wide[1] - side) // 2
    return image.resize(wide).crop((left, top, left + side, top + side))


def _folders(root: str) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def _labelled(root: str, part: str, classes: list[str]) -> list[tuple[str, int]]:
    found = []
    for label, name in enumerate(classes):
        folder = os.path.join(part, name)
        try:
            files = sorted(os.listdir(os.path.join(root, folder)))
        except FileNotFoundError:
            continue  # a held-out part without this class
        pictures = [file for file in files if file.lower().endswith(_SUFFIXES) and file[0] != "."]
        found += [(os.path.join(folder, file), label) for file in pictures]
    return found


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            f"pictures need the pillow package: pip install 'plait[images]' ({error})"
        ) from error
    return Image
