"""Datasets of tokens: sample i of a file of tokens is its window [i S, i S + S], both ends in.

Windows overlap by the one token that is target of one and input of the next; what is left at the
end and fills no window is dropped. The files are memory-mapped, so they may exceed the memory.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.data.bundle import Bundle
from plait.data.dataset import Array, Comm, Dataset, check_indices, not_prepared
from plait.data.share import build_once
from plait.errors import UserError

Tokens = npt.NDArray[Any]  # (n,) of any integer type, memory-mapped


def map_tokens(path: Path, dtype: np.dtype[Any]) -> Tokens:
    """The tokens of a raw file; an empty file cannot be mapped and is an empty array."""
    if not path.stat().st_size:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r")


@dataclass(frozen=True)
class Ready:
    """What a prepared source has: its files, its mapped tokens, and bytes per token id."""

    bundle: Bundle
    training: Tokens
    held_out: Tokens
    token_bytes: npt.NDArray[np.int32] | None = None


class TokenSource(ABC):
    """Where the tokens of a dataset and of its held-out part come from; shared by both."""

    def __init__(self, name: str, vocabulary: int, sequence_length: int) -> None:
        if sequence_length < 1:
            raise UserError(f"sequence_length = {sequence_length} must be at least 1")
        self.name, self.vocabulary, self.sequence_length = name, vocabulary, sequence_length
        self._ready: Ready | None = None

    @property
    def ready(self) -> Ready:
        if self._ready is None:
            raise not_prepared(self.name)
        return self._ready

    def prepare(self, comm: Comm | None) -> None:
        if self._ready is not None:
            return
        ready = self.map(build_once(comm, self.build))
        needed = self.sequence_length + 1
        if len(ready.training) < needed:
            raise UserError(
                f"{self.name} has {len(ready.training)} training tokens, fewer than one sequence "
                f"of {needed} (sequence_length = {self.sequence_length} and the next token): "
                "give more text or a shorter sequence_length"
            )
        self._ready = ready

    @abstractmethod
    def build(self) -> Bundle:
        """On rank 0: finds or makes the files. Raises UserError for what is wrong with them."""

    @abstractmethod
    def map(self, bundle: Bundle) -> Ready:
        """On every rank: maps the training and the held-out tokens."""


class TokenDataset(Dataset):
    """Training or held-out windows of a source.

    Raises IndexError for a sample that is not there and UserError for a token outside the
    vocabulary, as it is met.
    """

    kind = "tokens"

    def __init__(self, source: TokenSource, part: str = "training") -> None:
        self._source, self._part = source, part
        self.vocabulary, self.sequence_length = source.vocabulary, source.sequence_length

    def prepare(self, comm: Comm | None = None) -> None:
        self._source.prepare(comm)

    @property
    def held_out(self) -> "TokenDataset | None":
        return type(self)(self._source, "held_out") if self._part == "training" else None

    @property
    def samples(self) -> int:
        return max(len(self._tokens) - 1, 0) // self.sequence_length

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.sequence_length,)

    @property
    def input_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int32)

    @property
    def token_bytes(self) -> npt.NDArray[np.int32] | None:
        return self._source.ready.token_bytes

    @property
    def fingerprint(self) -> str:
        return self._source.ready.bundle.fingerprint

    def batch(self, indices: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        check_indices(indices, self.samples)
        starts = np.asarray(indices, np.int64)[:, None] * self.sequence_length
        windows = self._tokens[starts + np.arange(self.sequence_length + 1)]
        if windows.size and not (windows.min() >= 0 and windows.max() < self.vocabulary):
            wrong = windows.min() if windows.min() < 0 else windows.max()
            raise UserError(
                f"{self._source.name} holds token {wrong}, outside vocabulary = {self.vocabulary}: "
                "give the vocabulary of the tokenizer that made the file"
            )
        windows = windows.astype(np.int32)
        return windows[:, :-1].copy(), windows[:, 1:].copy()

    @property
    def _tokens(self) -> Tokens:
        ready = self._source.ready
        return ready.training if self._part == "training" else ready.held_out
