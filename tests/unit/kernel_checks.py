"""What kernel tests share: error bounds against float64, and bits equal on every path."""

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from plait import _cpu
from plait.train.numerics import PATHS

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
STORAGE = [FLOAT32, BFLOAT16]
EMULATED = "amx_bf16_emulated"  # amx_bf16 on any processor
AVAILABLE = PATHS[: PATHS.index(_cpu.isa()) + 1]
# Each family gives the same bits; they differ in products of two bfloat16 matrices.
VECTOR_PATHS = tuple(path for path in AVAILABLE if path != "amx_bf16")
AMX_PATHS = (EMULATED, *(path for path in AVAILABLE if path == "amx_bf16"))
EPSILON = 2.0**-24  # half a unit in the last place of float32 at 1


def random(shape: Sequence[int], dtype: np.dtype = FLOAT32, seed: int = 0, scale: float = 1.0):
    """Normal numbers, rounded to `dtype`: the reference sees the same rounded values."""
    generator = np.random.default_rng([seed, *shape])
    return (generator.standard_normal(tuple(shape)) * scale).astype(np.float32).astype(dtype)


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def strided(x: np.ndarray) -> np.ndarray:
    """The same values as a view with gaps between its rows on every axis but the last."""
    shape = [2 * n + 1 for n in x.shape[:-1]] + [x.shape[-1] + 3]
    holder = np.full(shape, 7.0, np.float32).astype(x.dtype)
    rows = [slice(1, 2 * n + 1, 2) for n in x.shape[:-1]]
    view = holder[(*rows, slice(2, 2 + x.shape[-1]))]
    view[...] = x
    return view


def assert_near(got: np.ndarray, expected: np.ndarray, units: float, magnitude=1.0) -> None:
    """|got - expected| <= units * 2^-24 * magnitude, plus one rounding where got is bfloat16.

    magnitude: the size of the terms that were added up, broadcast against expected.
    """
    assert got.shape == expected.shape
    bound = units * EPSILON * np.maximum(np.abs(expected), magnitude)
    if got.dtype == BFLOAT16:
        bound = bound + 2.0**-8 * np.abs(expected)
    error = np.abs(wide(got) - expected)
    assert np.all(np.isfinite(wide(got)))
    worst = np.unravel_index(np.argmax(error - bound), error.shape) if error.size else ()
    assert np.all(error <= bound), f"{worst}: got {got[worst]}, expected {expected[worst]}"


def bits(x: np.ndarray) -> bytes:
    return np.ascontiguousarray(x).tobytes()


def assert_same_bits(call: Callable[[], Sequence[np.ndarray]]) -> None:
    """call() gives the same bits on every path of a family and with 1, 2 and 3 threads."""
    best = _cpu.isa()
    try:
        for family in (VECTOR_PATHS, AMX_PATHS):
            expected = None
            for path in family:
                for threads in (1, 2, 3):
                    _cpu.set_isa(path)
                    _cpu.set_threads(threads)
                    got = [bits(x) for x in call()]
                    expected = expected or got
                    assert got == expected, f"{path} with {threads} threads differs"
    finally:
        _cpu.set_isa(best)
        _cpu.set_threads(1)
