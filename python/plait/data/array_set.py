"""Arrays from Python as a dataset: every rank passes the same ones, and prepare checks it."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.data.dataset import Array, Comm, Dataset, check_indices, not_prepared
from plait.data.share import all_raise
from plait.errors import UserError

_ROWS_BYTES = 1 << 24  # hashed and checked at once


class ArrayDataset(Dataset):
    """x (n, ...) and y (n, ...) as in data.arrays; `classes` counts labels of integer y (n,)."""

    kind = "arrays"

    def __init__(self, x: Array, y: Array, held_out: "ArrayDataset | None", name: str) -> None:
        for key, array in (("x", x), ("y", y)):
            if array.ndim < 1 or array.dtype.kind not in "biuf":
                raise UserError(
                    f"{name}: {key} is {array.dtype} of shape {array.shape}: it must be numbers "
                    "with one sample a row"
                )
        if len(x) != len(y):
            raise UserError(f"{name}: x has {len(x)} rows and y {len(y)}: they must be as many")
        self._x, self._y, self._held_out, self._name = x, y, held_out, name
        self._fingerprint = ""
        self._classes = 0

    def prepare(self, comm: Comm | None = None) -> None:
        if self._fingerprint:
            return
        error, fingerprint = None, ""
        try:
            self._classes = self._check()
            fingerprint = _fingerprint(self._all())
        except UserError as failure:
            error = str(failure)
        all_raise(comm, error)
        if comm is not None:
            first = comm.broadcast_object(fingerprint, root=0)
            differs = f"rank {comm.rank} passed other arrays than rank 0: all must pass the same"
            all_raise(comm, None if fingerprint == first else f"{self._name}: {differs}")
        self._fingerprint = fingerprint
        if self._held_out is not None:
            self._held_out._fingerprint, self._held_out._classes = fingerprint, self._classes

    @property
    def samples(self) -> int:
        return len(self._x)

    @property
    def held_out(self) -> "ArrayDataset | None":
        return self._held_out

    @property
    def classes(self) -> int:
        if not self._fingerprint:
            raise not_prepared(self._name)
        return self._classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._x.shape[1:]

    @property
    def input_dtype(self) -> np.dtype[Any]:
        return _dtype(self._x)

    @property
    def fingerprint(self) -> str:
        if not self._fingerprint:
            raise not_prepared(self._name)
        return self._fingerprint

    def batch(self, indices: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """x as float32, or int32 where it holds integers; y likewise."""
        check_indices(indices, self.samples)
        return (
            np.array(self._x[indices], _dtype(self._x)),
            np.array(self._y[indices], _dtype(self._y)),
        )

    def _all(self) -> list[Array]:
        parts = [self, self._held_out] if self._held_out is not None else [self]
        return [array for part in parts for array in (part._x, part._y)]

    def _check(self) -> int:
        """The number of classes, after a look at every value."""
        if not len(self._x):
            raise UserError(f"{self._name} is empty: x has no rows")
        for part, array in zip(("x", "y", "held-out x", "held-out y"), self._all()):
            for start, rows in _blocks(array):
                _check_values(rows, start, f"{self._name}: {part}")
        if self._y.dtype.kind not in "iu" or self._y.ndim != 1:
            return 0
        classes = int(self._y.max()) + 1
        for y in self._all()[1::2]:
            if y.size and not (y.min() >= 0 and y.max() < classes):
                wrong = y.min() if y.min() < 0 else y.max()
                raise UserError(
                    f"{self._name}: label {wrong} is outside the {classes} classes "
                    "(0 to the largest training label)"
                )
        return classes


def _check_values(rows: Array, start: int, name: str) -> None:
    if rows.dtype.kind == "f":
        with np.errstate(over="ignore"):
            finite = np.isfinite(rows.astype(np.float32)).reshape(len(rows), -1).all(1)
        if not finite.all():
            bad = start + int(np.flatnonzero(~finite)[0])
            raise UserError(f"{name}: row {bad} is not finite in float32")
    elif rows.dtype.kind in "iu" and rows.size:
        low, high = int(rows.min()), int(rows.max())
        if low < -(1 << 31) or high >= 1 << 31:
            raise UserError(f"{name} holds {low if low < 0 else high}, beyond 32 bits")


def _dtype(array: Array) -> np.dtype[Any]:
    return np.dtype(np.int32 if array.dtype.kind in "iu" else np.float32)


def _blocks(array: Array) -> list[tuple[int, Array]]:
    rows = max(1, _ROWS_BYTES // max(1, array.itemsize * int(np.prod(array.shape[1:]))))
    return [(start, array[start : start + rows]) for start in range(0, len(array), rows)]


def _fingerprint(arrays: list[Array]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for _, rows in _blocks(array):
            digest.update(np.ascontiguousarray(rows).data.cast("B"))
    return digest.hexdigest()
