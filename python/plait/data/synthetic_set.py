"""Made-up data that a model can learn, from (seed, sample number) alone: tests and benchmarks.

Tokens count up from a random start by a random stride of 1 to 4. Other inputs are the pattern of
their class and as much noise, both cut out of pools that are drawn once.
"""

import hashlib
import math
from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.data.dataset import Array, Comm, Dataset, check_indices
from plait.data.mixing import Words, mix, mix_array

_STRIDES = 4
_OFFSETS = 1 << 14  # places in the pool of noise where a sample's noise may begin
_SHIFT = 97  # elements between the starts of two classes' patterns in their pool


class SyntheticDataset(Dataset):
    """Samples first .. first + samples of an endless set; prepare has nothing to do."""

    def __init__(self, samples: int, seed: int, first: int = 0) -> None:
        self._samples, self._seed, self._first = samples, seed, first

    def prepare(self, comm: Comm | None = None) -> None:
        pass

    @property
    def samples(self) -> int:
        return self._samples

    @property
    def held_out(self) -> "SyntheticDataset | None":
        """A twentieth as many samples, the next ones of the set."""
        if self._first:
            return None
        return self._part(max(self._samples // 20, 1), self._samples)

    @property
    def fingerprint(self) -> str:
        what = (self.kind, self._samples, self._seed, self.vocabulary, self.classes)
        return hashlib.sha256(repr((*what, self.input_shape)).encode()).hexdigest()

    @abstractmethod
    def _part(self, samples: int, first: int) -> "SyntheticDataset": ...

    def _random(self, indices: npt.NDArray[np.int64], stream: int) -> Words:
        check_indices(indices, self._samples)
        numbers = np.asarray(indices).astype(np.uint64) + np.uint64(self._first)
        return mix_array(numbers, mix(4 * self._seed + stream))


class SyntheticTokens(SyntheticDataset):
    kind = "tokens"

    def __init__(
        self, samples: int, seed: int, first: int = 0, *, vocabulary: int, sequence_length: int
    ) -> None:
        super().__init__(samples, seed, first)
        self.vocabulary, self.sequence_length = vocabulary, sequence_length

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.sequence_length,)

    @property
    def input_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int32)

    def batch(self, indices: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        starts = (self._random(indices, 0) % np.uint64(self.vocabulary)).astype(np.int64)
        strides = (self._random(indices, 1) % np.uint64(_STRIDES)).astype(np.int64) + 1
        counts = starts[:, None] + strides[:, None] * np.arange(self.sequence_length + 1)
        tokens = (counts % self.vocabulary).astype(np.int32)
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()

    def _part(self, samples: int, first: int) -> "SyntheticTokens":
        return SyntheticTokens(
            samples,
            self._seed,
            first,
            vocabulary=self.vocabulary,
            sequence_length=self.sequence_length,
        )


class SyntheticClasses(SyntheticDataset):
    """Images where input_shape is (H, W, C), else arrays; labels int32."""

    def __init__(
        self,
        samples: int,
        seed: int,
        first: int = 0,
        *,
        input_shape: tuple[int, ...],
        classes: int,
    ) -> None:
        super().__init__(samples, seed, first)
        self.kind = "images" if len(input_shape) == 3 else "arrays"
        self._shape, self._classes = input_shape, classes
        self._elements = math.prod(input_shape)
        self._patterns = _uniform(self._elements + _SHIFT * classes, mix(4 * seed + 2))
        self._noise = _uniform(self._elements + _OFFSETS, mix(4 * seed + 3))

    @property
    def classes(self) -> int:
        return self._classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def input_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def batch(self, indices: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        labels = (self._random(indices, 0) % np.uint64(self._classes)).astype(np.int32)
        offsets = (self._random(indices, 1) % np.uint64(_OFFSETS)).astype(np.int64)
        x = np.empty((len(labels), self._elements), np.float32)
        for row, start, offset in zip(x, labels * _SHIFT, offsets):
            pattern = self._patterns[start : start + self._elements]
            np.add(pattern, self._noise[offset : offset + self._elements], out=row)
        return x.reshape(-1, *self._shape), labels

    def _part(self, samples: int, first: int) -> "SyntheticClasses":
        return SyntheticClasses(
            samples, self._seed, first, input_shape=self._shape, classes=self._classes
        )


def _uniform(count: int, key: int) -> npt.NDArray[np.float32]:
    """Values in [-1, 1), multiples of 2**-23: the same on every machine."""
    words = mix_array(np.arange(count, dtype=np.uint64), key) >> np.uint64(40)
    return (words.astype(np.float32) - np.float32(1 << 23)) / np.float32(1 << 23)
