"""Rule 9 of docs/numerics.md for matmul's epilogues: the bits of the product, stored, and then the
op of its own, on the same backend; on every instruction path of the CPU."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from kernel_backends import in_orders
from kernel_checks import BFLOAT16, FLOAT32, STORAGE, assert_same_bits, random
from matmul_checks import same_bits, strided

from plait import _cpu

Array = np.ndarray
KINDS = ["gelu", "gelu_backward", "residual"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def like(x: Array) -> Array:
    return np.full_like(x, 9)


def apart(kernels: Any, kind: str, out: Array, other: Array) -> tuple[Array, Array]:
    """What out and the epilogue's matrix are once the op was applied to the stored product."""
    found = like(out)
    if kind == "gelu":
        kernels.gelu_forward(out, found)
        return out, found
    if kind == "gelu_backward":
        kernels.gelu_backward(out, other, found)
    else:
        kernels.add([other, out], found)
    return found, other


def check(
    kernels: Any, kind: str, shape: tuple[int, int, int], types: tuple[np.dtype, np.dtype], *,
    ta: bool = False, tb: bool = False, parts: int = 1, gap: int = 0, bias: Array | None = None,
    special: bool = False,
) -> None:  # fmt: skip
    """types: of a and b, and of out. gap: how far apart rows of out and of the other matrix lie
    besides their length; what is there stays."""
    m, k, n = shape
    a, b = random((m, k), types[0], 1), random((k, n), types[0], 2)
    other = random((m, n), types[1], 3, scale=4)
    if special and m > 4 and k:
        a[0, 0], a[-1, 0] = np.inf, np.nan
        other[1:-1] = np.resize([1, np.inf, -0.0, np.nan, 2, -np.inf, 1e-40, 90], other[1:-1].shape)
    a = np.ascontiguousarray(a.T) if ta else a
    b = np.ascontiguousarray(b.T) if tb else b
    leaves = [k * i // parts for i in range(parts + 1)]
    arguments = a, b, ta, tb, leaves, False, 0, bias
    with np.errstate(all="ignore"):
        plain = np.full((m, n), 7, types[1])
        kernels.matmul(*arguments, plain)
        expected = apart(kernels, kind, plain, other)
        out, second = (strided(x, gap) for x in (np.full((m, n), 7, types[1]), other))
        kernels.matmul(*arguments, out, **{kind: second})
    for found, right in zip((out, second), expected, strict=True):
        same_bits(found, right)
        if gap:
            assert np.isnan(found.base[:, n:].astype(FLOAT32)).all()


TYPES = [(FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16), (BFLOAT16, FLOAT32)]
SHAPES = [(1, 1, 1), (2, 3, 5), (0, 3, 4), (3, 0, 4), (3, 4, 0), (13, 31, 33), (70, 90, 72)]


@every_kind
@pytest.mark.parametrize("types", TYPES, ids=str)
def test_the_bits_of_the_op_of_its_own(kernels: Any, kind: str, types: Any) -> None:
    for number, shape in enumerate(SHAPES):
        bias = random((shape[2],), STORAGE[number % 2], 4) if number % 2 else None
        ways = product((False, True), repeat=2) if shape[0] < 50 else [(False, True)]
        for ta, tb in ways:
            check(kernels, kind, shape, types, ta=ta, tb=tb, bias=bias)
        for gap in (1, 8):
            check(kernels, kind, shape, types, tb=True, gap=gap, special=True)


@every_kind
@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_after_the_tree_of_leaves(kernels: Any, kind: str, types: Any, parts: int) -> None:
    for shape in [(5, 24, 3), (70, 90, 66), (0, 8, 8), (8, 0, 8)]:
        check(kernels, kind, shape, types, parts=parts, bias=random((shape[2],), types[0], 4))


@every_kind
def test_several_tiles(kernels: Any, kind: str) -> None:
    for types in TYPES[:2]:
        check(kernels, kind, (140, 40, 264), types, tb=True, bias=random((264,)))
        check(kernels, kind, (270, 40, 70), types, gap=3)


@every_kind
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_order_of_threads(kernels: Any, kind: str, dtype: np.dtype) -> None:
    a, b, other = random((130, 40), dtype), random((40, 150), dtype, 1), random((130, 150), dtype)

    def run() -> tuple[Array, Array]:
        out, second = like(other), other.copy()
        kernels.matmul(a, b, False, False, [0, 20, 40], False, 0, None, out, **{kind: second})
        return out, second

    first, *others = in_orders(kernels, run)
    for found in others:
        same_bits(found[0], first[0])
        same_bits(found[1], first[1])


@every_kind
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_bits_of_every_path_and_number_of_threads(kind: str, dtype: np.dtype) -> None:
    a, b, bias = random((75, 140), dtype, 1), random((140, 101), dtype, 2), random((101,), dtype, 3)
    other = random((75, 101), dtype, 4)

    def run() -> list[Array]:
        out, second = like(other), other.copy()
        _cpu.matmul(a, b, False, False, [0, 50, 140], False, 0, bias, out, **{kind: second})
        plain = like(other)
        _cpu.matmul(a, b, False, False, [0, 50, 140], False, 0, bias, plain)
        for found, right in zip((out, second), apart(_cpu, kind, plain, other), strict=True):
            same_bits(found, right)
        return [out, second]

    assert_same_bits(run)


@every_kind
def test_one_row_may_have_any_stride(kernels: Any, kind: str) -> None:
    a, b = random((1, 20), BFLOAT16), random((20, 24), BFLOAT16, 1)
    other = random((1, 24), BFLOAT16, 5)
    plain = like(other)
    kernels.matmul(a, b, False, False, [0, 20], False, 0, None, plain)
    expected = apart(kernels, kind, plain, other)
    out, second = (
        np.lib.stride_tricks.as_strided(x.copy(), (1, 24), (stride, 2))
        for x, stride in ((other, 6), (other, 2))
    )
    kernels.matmul(a, b, False, False, [0, 20], False, 0, None, out, **{kind: second})
    same_bits(out, expected[0])
    same_bits(second, expected[1])


def test_errors(kernels: Any) -> None:
    a, b, out, other = random((2, 3)), random((3, 5)), random((2, 5)), random((2, 5), seed=1)
    wide = random((4, 5))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("got both gelu and residual", {"gelu": other, "residual": other}),
        ("got both gelu_backward and residual", {"gelu_backward": other, "residual": other}),
        (r"residual is \(2, 4\) float32, expected \(2, 5\)", {"residual": random((2, 4))}),
        ("must be of out's type: out", {"gelu_backward": other.astype(BFLOAT16)}),
        ("residual .* has stride 2 along its last axis", {"residual": random((5, 2)).T}),
        (
            "the rows of gelu overlap",
            {"gelu": np.lib.stride_tricks.as_strided(wide, (2, 5), (4, 4))},
        ),
        *((f"{kind} .* is out itself", {kind: out}) for kind in KINDS),
    ]
    for module in (_cpu, kernels):
        for message, options in cases:
            with pytest.raises(ValueError, match=f"matmul: .*{message}"):
                module.matmul(a, b, False, False, [0, 3], False, 0, None, out, **options)
        for kind in KINDS:
            with pytest.raises(ValueError, match=f"got {kind} and accumulate"):
                module.matmul(a, b, False, False, [0, 3], True, 0, None, out, **{kind: other})
