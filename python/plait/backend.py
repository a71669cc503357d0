"""The kernels and the arrays they work on: numpy for the CPU backend."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import plait._cpu as kernels

Array = NDArray[Any]
bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)

PRECISIONS = {"float32": float32, "bfloat16": bfloat16}


def empty(shape: int | tuple[int, ...], dtype: Any = float32) -> Array:
    return np.empty(shape, dtype)


def zeros(shape: int | tuple[int, ...], dtype: Any = float32) -> Array:
    return np.zeros(shape, dtype)


def bits(x: Array) -> Array:
    """The same memory as unsigned integers: sums of bits with zeros elsewhere select exactly."""
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


__all__ = ["PRECISIONS", "Array", "bfloat16", "bits", "empty", "float32", "kernels", "zeros"]
