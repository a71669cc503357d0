"""What the trainer asks of a dataset: prepare once on every rank, then batches by index.

Before prepare a dataset is only a description, so it is made on every rank with no communication.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from plait.errors import UserError

Array = npt.NDArray[Any]
Kind = Literal["tokens", "images", "arrays"]


class Comm(Protocol):
    """The part of a communicator that data needs; a size-1 communicator is an identity."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def broadcast(self, x: Any, root: int = 0) -> Any: ...
    def broadcast_object(self, value: Any, root: int = 0) -> Any: ...
    def all_gather_object(self, value: Any) -> list[Any]: ...


class Dataset(ABC):
    """Samples by index. Only `kind`, `vocabulary`, `sequence_length` and `held_out` (None where
    there is none) may be read before `prepare`; the rest raises RuntimeError until then.
    """

    kind: Kind
    vocabulary: int = 0  # tokens: every id is below it
    sequence_length: int = 0  # tokens: positions of a sample

    @abstractmethod
    def prepare(self, comm: Comm | None = None) -> None:
        """Collective over comm: rank 0 reads or builds, the others share its files or receive them.

        None is a world of one. Calling it again does nothing. Prepares `held_out` too. What is
        wrong with the data raises the same UserError on every rank.
        """

    def look(self) -> None:
        """Raises UserError for what is wrong with the data, in this process alone; nothing that
        takes long is looked at."""
        self.prepare()

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many samples there are; may be 0 for a held-out part only."""

    @property
    @abstractmethod
    def held_out(self) -> "Dataset | None":
        """The samples kept back for evaluation."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample's input: (S,) for tokens, (H, W, C) for images."""

    @property
    @abstractmethod
    def input_dtype(self) -> np.dtype[Any]:
        """Type of the inputs that batch returns."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal hash of the data (and the tokenizer); equal data, equal fingerprint."""

    @property
    def classes(self) -> int:
        """How many labels there are; 0 where targets are no labels."""
        return 0

    @property
    def token_bytes(self) -> npt.NDArray[np.int32] | None:
        """Bytes of text per token id (vocabulary,), for bits per byte; None where unknown."""
        return None

    @abstractmethod
    def batch(self, indices: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """Inputs (n, *input_shape) and targets of the samples at indices (n,).

        Tokens: int32 (n, S) and int32 (n, S), the next token or -1 where it is ignored.
        Images: float32 (n, H, W, C), normalised, and int32 (n,). Raises IndexError outside
        [0, samples). In training it runs on a thread of its own, never twice at a time, while a
        step computes and until the next one begins: leave the data set alone between steps.
        """


def check_indices(indices: npt.NDArray[np.int64], samples: int) -> None:
    if indices.size and not (indices.min() >= 0 and indices.max() < samples):
        wrong = indices.min() if indices.min() < 0 else indices.max()
        raise IndexError(f"sample {wrong} of a dataset of {samples} samples")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns an OSError of the files read inside into a UserError that names them."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error}") from error


def no_file(what: str, path: str) -> UserError:
    """For a path that is neither a file nor a folder: why."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return UserError(f"{what}: no such file or folder (the working folder is {os.getcwd()})")
    except OSError as error:
        return UserError(f"{what} cannot be read: {error}")
    return UserError(f"{what} is a device or a pipe: copy what it gives to a file first")


def not_prepared(name: str) -> RuntimeError:
    return RuntimeError(f"{name} is not read yet: call prepare(comm), or prepare() on one rank")
