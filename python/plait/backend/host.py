"""numpy arrays and the CPU's kernels: what files and communication work on, always."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import plait._cpu as kernels

Array = NDArray[Any]
bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)

POOLED = 1 << 15  # bytes; the C library keeps smaller blocks by itself


def empty(shape: int | tuple[int, ...], dtype: Any = float32) -> Array:
    """As numpy.empty, in memory of the pool: what earlier arrays left, already present."""
    shape, dtype = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    if math.prod(shape) * dtype.itemsize < POOLED:
        return np.empty(shape, dtype)
    array: Array = kernels.empty(shape, dtype)
    return array


def copied(x: Array) -> Array:
    """Contiguous, whatever x is."""
    out = empty(x.shape, x.dtype)
    out[...] = x
    return out


def contiguous(x: Array) -> Array:
    return x if x.flags.c_contiguous else copied(x)


__all__ = [
    "POOLED",
    "Array",
    "bfloat16",
    "contiguous",
    "copied",
    "empty",
    "float32",
    "kernels",
]
