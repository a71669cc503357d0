"""A byte-trigram model: the bits per byte that a language model has to beat.

Counts on the training bytes, interpolated down to single bytes by Witten and Bell ("The
zero-frequency problem", 1991, method C): p(c | ab) = (n_abc + t_ab p(c | b)) / (n_ab + t_ab),
t_ab the number of different bytes seen after ab. A document starts after two zero bytes.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Pieces = Iterable[tuple[str, bool]]  # text, and whether it ends its document
_Codes = npt.NDArray[np.int32]  # a << 16 | b << 8 | c
_Values = npt.NDArray[np.float64]
_GROUP_BYTES = 1 << 19  # counted or scored at once
_START = b"\0\0"


class Trigram:
    """128 MiB of counts: count the training text, then score held-out text."""

    def __init__(self) -> None:
        self._counts = np.zeros(1 << 24, np.int64)

    def count(self, pieces: Pieces) -> None:
        for codes in _codes(pieces):
            np.add.at(self._counts, codes, 1)

    def bits_per_byte(self, pieces: Pieces) -> float:
        """Mean cost of the pieces' bytes; nan where there are none."""
        after_two = self._counts.reshape(1 << 16, 256)
        seen_two, kinds_two = after_two.sum(1), np.count_nonzero(after_two, axis=1)
        after_one = after_two.reshape(256, 256, 256).sum(0)
        single = _mix(
            after_one.sum(0), after_one.sum(), np.count_nonzero(after_one.sum(0)), 1 / 256
        )
        pair = _mix(
            after_one,
            after_one.sum(1, keepdims=True),
            np.count_nonzero(after_one, axis=1)[:, None],
            single,
        ).ravel()
        bits, total = 0.0, 0
        for codes in _codes(pieces):
            two = codes >> 8
            cost = _mix(self._counts[codes], seen_two[two], kinds_two[two], pair[codes & 0xFFFF])
            bits -= float(np.log2(cost).sum())
            total += len(codes)
        return bits / total if total else float("nan")


def _mix(counts: npt.ArrayLike, seen: npt.ArrayLike, kinds: npt.ArrayLike, lower: Any) -> _Values:
    """(counts + kinds lower) / (seen + kinds); lower where nothing was seen in the context."""
    counts, seen, kinds = np.asarray(counts), np.asarray(seen), np.asarray(kinds)
    lower_part = np.asarray(lower, np.float64)
    total = seen + kinds
    mixed: _Values = (counts + kinds * lower_part) / np.maximum(total, 1)
    return np.where(total > 0, mixed, lower_part)


def _codes(pieces: Pieces) -> Iterator[_Codes]:
    """The trigrams of documents, in groups; those that would predict a start are left out."""
    for group in _groups(pieces):
        x = np.frombuffer(group, np.uint8).astype(np.int32)
        codes = (x[:-2] << 16) | (x[1:-1] << 8) | x[2:]
        yield codes[x[2:] != 0]


def _groups(pieces: Pieces) -> Iterator[bytes]:
    """The bytes of documents, each after _START; a group begins with the two bytes before it."""
    group, starts = bytearray(_START), False  # the first document's start is there already
    for text, ends in pieces:
        if starts:
            group += _START
        group += text.encode()
        starts = ends
        if len(group) > _GROUP_BYTES:
            yield bytes(group)
            del group[:-2]
    yield bytes(group)
