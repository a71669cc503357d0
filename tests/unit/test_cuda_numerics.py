"""The rules of docs/numerics.md that hold for every kernel, of the CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import kernel_cases
import kernel_chains
import numpy as np
import pytest
from kernel_backends import kernels
from kernel_bits import in_every_order
from kernel_cases import MIXED, ROWS, Case
from kernel_chains import CHAINS, Chain
from kernel_checks import BFLOAT16, FLOAT32, STORAGE, wide
from test_numerics_kernels import case_of, outputs, same, unaligned

from plait import _cpu

pytestmark = pytest.mark.cuda

every_type = pytest.mark.parametrize("dtype", STORAGE, ids=str)
every_case = pytest.mark.parametrize("name", [*ROWS, *MIXED, *CHAINS])


@pytest.fixture(autouse=True)
def _cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cases call the CUDA kernels."""
    for module in (kernel_cases, kernel_chains):
        monkeypatch.setattr(module, "_cpu", kernels("cuda"))
    yield


@every_type
@every_case
def test_sanitized_near_the_cpu(
    name: str, dtype: np.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every op once; only the order of sums may differ, and what bfloat16 rounds on its way."""
    found = outputs(case_of(name, dtype))
    with monkeypatch.context() as patch:
        for module in (kernel_cases, kernel_chains):
            patch.setattr(module, "_cpu", _cpu)
        expected = outputs(case_of(name, dtype))
    for ours, cpu in zip(found, expected, strict=True):
        if cpu.dtype.kind == "i":
            assert (ours == cpu).all()
            continue
        bound = 2.0**-6 if dtype == BFLOAT16 else 2.0**-16
        size = np.abs(wide(cpu)).max(initial=1e-3)
        np.testing.assert_allclose(wide(ours), wide(cpu), rtol=bound, atol=bound * size)


@every_type
@pytest.mark.parametrize("name", CHAINS)
def test_rule_3_and_4(name: str, dtype: np.dtype) -> None:
    """A leaf starts fresh, and goes on from call to call at any cut between samples."""
    chain = CHAINS[name](dtype)
    zeros = tuple(np.zeros(shape, FLOAT32) for shape in chain.shapes)
    whole = chain.run(slice(None))
    assert same(whole, chain.run(slice(None), zeros))
    for cut in (1, 3):
        assert same(chain.run(slice(cut, None), chain.run(slice(cut))), whole)


@every_type
@pytest.mark.parametrize("name", ROWS)
def test_rule_16_a_sample_by_itself(name: str, dtype: np.dtype) -> None:
    """An output has the same bits in a batch of any size."""
    case = ROWS[name](dtype)
    whole, count = case.run(), len(case.samples[0])
    for part in (slice(0, 1), slice(count - 1, count), slice(1, 4)):
        found = case.call(*(x[part] for x in case.samples), *case.shared)
        assert same(found, tuple(x[part] for x in whole))


@every_type
@every_case
def test_rule_16_addresses_and_turns(name: str, dtype: np.dtype) -> None:
    """Neither unaligned arrays nor the order in which threads come by turns change a bit."""
    case = case_of(name, dtype)
    expected = outputs(case)
    moved = tuple(unaligned(x) for x in case.samples)
    if isinstance(case, Chain):
        found: Callable[[], tuple[np.ndarray, ...]]
        found = lambda: Chain(moved, case.shapes, case.kernel).run(slice(None))  # noqa: E731
    else:
        assert isinstance(case, Case)
        found = lambda: case.call(*moved, *(unaligned(x) for x in case.shared))  # noqa: E731
    for _ in in_every_order(kernels("cuda")):
        assert same(found(), expected)
