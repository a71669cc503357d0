"""Data for training: text, token files, images, arrays and made-up data, as samples by index.

Each function only describes its data, on every rank alike and without communication; a trainer
calls `prepare` once. Import `plait.data` for these functions, its modules for the parts.
"""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.data.array_set import ArrayDataset
from plait.data.bpe import Tokenizer
from plait.data.dataset import Comm, Dataset
from plait.data.image_set import ImageDataset, ImageSource
from plait.data.sampler import Sampler
from plait.data.synthetic_set import SyntheticClasses, SyntheticDataset, SyntheticTokens
from plait.data.text_set import Text, TextSource
from plait.data.token_set import TokenFileSource
from plait.data.windows import TokenDataset
from plait.errors import UserError

__all__ = [
    "Comm",
    "Dataset",
    "Sampler",
    "Tokenizer",
    "arrays",
    "images",
    "synthetic",
    "text",
    "tokens",
]

PathLike = str | os.PathLike[str]


def text(path: PathLike, *, vocabulary: int, sequence_length: int) -> Text:
    """Windows of sequence_length tokens of a text file, a folder of them, or "python-stdlib".

    vocabulary: size of the byte-level BPE that is trained on the training part (at least 257).
    Held out is every 20th file (sorted by name), with fewer than 20 files the last 20th of each.
    The result is cached under ~/.cache/plait (or $XDG_CACHE_HOME/plait).

    Raises UserError here for values out of range; prepare raises it for a missing path, an empty
    corpus, one shorter than a sequence, or without the tokenizers package (plait[text]).
    """
    return Text(TextSource(os.fspath(path), vocabulary, sequence_length))


def tokens(
    path: PathLike,
    *,
    vocabulary: int,
    sequence_length: int,
    dtype: str | None = None,
    held_out: PathLike | None = None,
) -> TokenDataset:
    """Windows of sequence_length tokens of a memory-mapped file of token ids.

    path: an .npy file of integers (n,), or raw little-endian integers of type dtype ("uint16",
    "uint32", ...); if dtype is left out, a file of the same name ending in .json says it:
    {"dtype": "uint16"}. held_out: another such file; without it the last 20th is held out.

    Raises UserError as data.text does, and for a file cut short or ids outside the vocabulary.
    """
    other = None if held_out is None else os.fspath(held_out)
    return TokenDataset(TokenFileSource(os.fspath(path), vocabulary, sequence_length, dtype, other))


def images(path: PathLike, *, image_size: int = 0) -> ImageDataset:
    """Labelled images (H, W, C), normalised by the training part's mean and deviation per channel.

    path: a folder of IDX files (gzipped or not), an .npz with x and y or x_train, y_train, x_test
    and y_test, a folder of pictures by class (CLASS/*.png or train/CLASS, test/CLASS; needs
    plait[images]), "fashion-mnist" or "digits". image_size: side in pixels that pictures in
    folders are scaled and cut to; 0 for as they are. Where the data has no held-out part every
    20th image is held out (of digits every 5th).

    prepare raises UserError for what is missing, damaged, not finite or labelled wrongly.
    """
    return ImageDataset(ImageSource(os.fspath(path), image_size))


def arrays(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    held_out: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> ArrayDataset:
    """Samples x[i] with targets y[i], the same arrays on every rank; memory maps are not loaded.

    Floats become float32, integers int32; integers y (n,) are labels and their number is
    `classes`. held_out: (x, y) for evaluation, of the same shapes.

    Raises UserError for shapes that do not fit; prepare for values that are not finite, labels
    outside the classes, or arrays that differ between ranks.
    """
    part = None
    if held_out is not None:
        part = ArrayDataset(_array(held_out[0]), _array(held_out[1]), None, "held-out arrays")
    training = ArrayDataset(_array(x), _array(y), part, "arrays")
    if part is not None and part.input_shape != training.input_shape:
        raise UserError(
            f"held-out x has rows of shape {part.input_shape}, x of shape {training.input_shape}"
        )
    return training


def synthetic(
    *,
    samples: int = 65536,
    vocabulary: int = 0,
    sequence_length: int = 0,
    input_shape: tuple[int, ...] = (),
    classes: int = 0,
    seed: int = 0,
) -> SyntheticDataset:
    """Made-up samples: tokens (vocabulary and sequence_length), or classes of random patterns
    under noise (input_shape and classes); images if input_shape is (H, W, C).

    Raises UserError where neither pair, or both, are given, or a value is below 1.
    """
    is_tokens, is_classes = vocabulary or sequence_length, input_shape or classes
    if bool(is_tokens) == bool(is_classes):
        raise UserError(
            "synthetic data takes vocabulary and sequence_length, or input_shape and classes"
        )
    sizes: dict[str, Any] = {"samples": samples}
    if is_tokens:
        sizes |= {"vocabulary": vocabulary, "sequence_length": sequence_length}
    else:
        sizes |= {"classes": classes, "input_shape": min(input_shape, default=0)}
    for key, value in sizes.items():
        if value < 1:
            raise UserError(f"{key} = {value}: synthetic data needs at least 1")
    if is_tokens:
        return SyntheticTokens(
            samples, seed, vocabulary=vocabulary, sequence_length=sequence_length
        )
    return SyntheticClasses(samples, seed, input_shape=tuple(input_shape), classes=classes)


def _array(values: npt.ArrayLike) -> npt.NDArray[Any]:
    return values if isinstance(values, np.ndarray) else np.asarray(values)
