"""matmul_all_reduce on one rank: against numpy, the bits of its leaves, and what it refuses."""

import ml_dtypes
import numpy as np
import pytest

import plait
from plait.backend import bfloat16, float32, kernels
from plait.comm import Leaves
from plait.comm.alone import Alone

SHAPES = [(0, 3, 2), (3, 0, 2), (3, 2, 0), (1, 1, 1), (5, 7, 3), (33, 129, 65)]


def operands(m: int, k: int, n: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng([m, k, n])
    return random.standard_normal((m, k)).astype(dtype), random.standard_normal((k, n)).astype(
        dtype
    )


@pytest.mark.parametrize("dtype", [float32, bfloat16])
@pytest.mark.parametrize("leaves", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_rank_is_a_matmul_of_its_leaves(
    shape: tuple[int, int, int], leaves: int, dtype: np.dtype
) -> None:
    m, k, n = shape
    x, w = operands(m, k, n, dtype)
    comm = Alone().with_leaves(Leaves.even(leaves, 1))
    found = plait.matmul_all_reduce(x, w, comm)
    assert found.dtype == dtype
    expected = np.empty((m, n), dtype)
    bounds = [leaf * k // leaves for leaf in range(leaves + 1)]
    kernels.matmul(x, w, False, False, bounds, False, 0, None, expected)
    assert found.tobytes() == expected.tobytes()
    exact = x.astype(np.float64) @ w.astype(np.float64)
    scale = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64)
    rounding = 2.0**-22 if dtype == float32 else 2.0**-8
    assert (np.abs(found.astype(np.float64) - exact) <= rounding * scale).all()


def test_arrays_of_any_strides() -> None:
    x, w = operands(6, 5, 4, float32)
    comm = Alone().with_leaves(Leaves.even(2, 1))
    expected = plait.matmul_all_reduce(x, w, comm)
    columns = np.asfortranarray(x), np.asfortranarray(w)
    assert (plait.matmul_all_reduce(*columns, comm) == expected).all()
    backwards = x[::-1].copy()[::-1], w[:, ::-1].copy()[:, ::-1]
    assert (plait.matmul_all_reduce(*backwards, comm) == expected).all()
    for out in (np.empty((6, 4), float32, "F"), np.empty((6, 9), float32)[:, ::2][:, :4]):
        assert plait.matmul_all_reduce(x, w, comm, out) is out
        assert (out == expected).all()


def test_out_may_be_an_operand_or_wider() -> None:
    x, w = operands(5, 5, 5, float32)
    expected = plait.matmul_all_reduce(x, w, Alone())
    assert (plait.matmul_all_reduce(x.copy(), w, Alone(), out=w) == expected).all()
    x, w = operands(5, 40, 5, bfloat16)
    wide = plait.matmul_all_reduce(x, w, Alone(), out=np.empty((5, 5), float32))
    assert (wide.astype(bfloat16) == plait.matmul_all_reduce(x, w, Alone())).all()


def test_what_does_not_fit_is_refused() -> None:
    comm = Alone()
    x, w = np.zeros((3, 4), float32), np.zeros((5, 2), float32)
    with pytest.raises(ValueError, match=r"x \(3, 4\) and w \(5, 2\) do not match"):
        plait.matmul_all_reduce(x, w, comm)
    with pytest.raises(ValueError, match=r"x \(3, 4\) and w \(4,\) do not match"):
        plait.matmul_all_reduce(x, w[:4, 0], comm)
    w = w[:4]
    with pytest.raises(ValueError, match=r"x is float32 and w is float64.*astype\(np.float32\)"):
        plait.matmul_all_reduce(x, w.astype(np.float64), comm)
    with pytest.raises(ValueError, match="x is float32 and w is bfloat16"):
        plait.matmul_all_reduce(x, w.astype(ml_dtypes.bfloat16), comm)
    wrong = [np.zeros((3, 3), float32), np.zeros((3, 2), np.float64), np.zeros((3, 2), bfloat16)]
    for out in wrong:
        with pytest.raises(ValueError, match=r"\(3, 4\) @ w \(4, 2\) needs a writable out \(3, 2"):
            plait.matmul_all_reduce(x, w, comm, out)
    wrong[0] = np.zeros((3, 2), float32)
    wrong[0].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        plait.matmul_all_reduce(x, w, comm, wrong[0])
