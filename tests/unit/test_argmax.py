"""The largest of each row against numpy's argmax: NaN before all, the first among equals."""

import numpy as np
import pytest
from kernel_bits import assert_cpu_bits
from kernel_checks import STORAGE, assert_same_bits, bits, random, strided

from plait import _cpu


def argmax(x, columns, kernels=_cpu):
    value, index = np.full(len(x), 7, np.float32), np.full(len(x), 7, np.int32)
    kernels.argmax(x, columns, value, index)
    return value, index


def rows_of(columns, dtype):
    """Rows with few values, zeros of both signs, NaN, infinities, and nothing but them."""
    random = np.random.default_rng(columns)
    x = random.integers(-3, 4, (9, columns)).astype(np.float32)
    x[1] = np.where(random.random(columns) < 0.5, np.float32(-0.0), np.float32(0.0))
    x[2][random.random(columns) < 0.05] = np.nan
    x[3], x[4] = -np.inf, np.nan
    x[5, : columns // 2] = -np.inf
    x[6][random.random(columns) < 0.1] = np.inf
    x[7, columns // 2] = np.nan
    x[8, columns - 1 :] = 9  # the last one
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("columns", [1, 2, 7, 64, 65, 300, 2051, 4104])
def test_the_first_of_the_largest(kernels, columns, dtype):
    x = rows_of(columns, dtype)
    padded = np.full((len(x), columns + 3), 99, dtype)
    padded[:, :columns] = x
    for rows in (x, padded, strided(x)):
        value, index = argmax(rows, columns, kernels)
        assert index.tolist() == x.astype(np.float32).argmax(1).tolist()
        assert bits(value) == bits(x[np.arange(len(x)), index].astype(np.float32))


@pytest.mark.parametrize("dtype", STORAGE)
def test_no_rows_and_no_columns(kernels, dtype):
    assert argmax(np.zeros((0, 5), dtype), 5, kernels)[0].shape == (0,)
    for width in (0, 8):
        value, index = argmax(np.full((3, width), np.nan, dtype), 0, kernels)
        assert value.tolist() == [-np.inf] * 3
        assert index.tolist() == [0] * 3


@pytest.mark.parametrize("dtype", STORAGE)
def test_any_path_and_threads(dtype):
    x = random((67, 1003), dtype)
    x[:5, ::100] = np.nan
    assert_same_bits(lambda: argmax(x, 1000))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("columns", [5, 1000, 5003])
def test_cuda_has_the_cpus_bits(columns, dtype):
    x = rows_of(columns, dtype)
    assert_cpu_bits(lambda kernels: argmax(x, columns, kernels))


def test_errors(kernels):
    x = np.zeros((2, 4), np.float32)
    for columns in (-1, 5):
        with pytest.raises(ValueError, match=rf"argmax: columns is {columns}, x is \(2, 4\) float"):
            argmax(x, columns, kernels)
    with pytest.raises(ValueError, match=r"index is \(2,\) int64, expected int32"):
        kernels.argmax(x, 4, x[:, 0].copy(), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"x is \(2, 4\) int32, expected float32 or bf"):
        argmax(np.zeros((2, 4), np.int32), 4, kernels)
