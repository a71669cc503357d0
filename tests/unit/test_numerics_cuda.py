"""The rules of docs/numerics.md that hold for every kernel, for those of csrc/cuda: 3, 4, 9 and 16.
Which of them give the CPU's bits."""

from typing import Any

import kernel_backends
import kernel_cases
import kernel_chains
import numpy as np
import pytest
from kernel_backends import in_every_order
from kernel_bits import assert_cpu_bits
from kernel_cases import MIXED, ONCE, ROWS
from kernel_chains import CHAINS, Chain
from kernel_checks import BFLOAT16, FLOAT32, STORAGE, wide
from test_numerics_kernels import case_of, outputs, rounded, same, unaligned

pytestmark = pytest.mark.cuda

OTHER_BITS = {
    "matmul", "attention_forward", "attention_backward", "conv2d_forward", "conv2d_backward",
    "cross_entropy_statistics",
}  # fmt: skip


every_type = pytest.mark.parametrize("dtype", STORAGE, ids=str)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Cases run on it."""
    module = kernel_backends.kernels("cuda")
    for cases in (kernel_cases, kernel_chains):
        monkeypatch.setattr(cases, "_cpu", module)
    return module


@every_type
@pytest.mark.parametrize("name", [n for n in ROWS if n.split(" ")[0] not in OTHER_BITS])
def test_the_cpus_bits(name: str, dtype: np.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ROWS[name](dtype)

    def call(kernels: Any) -> kernel_cases.Outputs:
        monkeypatch.setattr(kernel_cases, "_cpu", kernels)
        return case.run()

    assert_cpu_bits(call)


@every_type
@pytest.mark.parametrize("name", [*ROWS, *MIXED, *CHAINS])
def test_sanitized_near_the_cpu(
    name: str, dtype: np.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every op once (tests/gpu/run runs it under compute-sanitizer): only the order of sums may
    differ, and what bfloat16 rounds on its way."""

    def found(backend: str) -> kernel_cases.Outputs:
        for cases in (kernel_cases, kernel_chains):
            monkeypatch.setattr(cases, "_cpu", kernel_backends.kernels(backend))
        return outputs(case_of(name, dtype))

    for ours, cpu in zip(found("cuda"), found("cpu"), strict=True):
        if cpu.dtype.kind == "i":
            assert (ours == cpu).all()
            continue
        bound = 2.0**-6 if dtype == BFLOAT16 else 2.0**-16
        size = np.abs(wide(cpu)).max(initial=1e-3)
        np.testing.assert_allclose(wide(ours), wide(cpu), rtol=bound, atol=bound * size)


@pytest.mark.usefixtures("cuda")
@every_type
@pytest.mark.parametrize("name", CHAINS)
def test_rules_3_and_4_of_chains(name: str, dtype: np.dtype) -> None:
    """A leaf starts fresh, whatever was in the buffer; a later call goes on at any cut."""
    chain = CHAINS[name](dtype)
    whole = chain.run(slice(None))
    zeros = tuple(np.zeros(shape, FLOAT32) for shape in chain.shapes)
    assert same(chain.run(slice(None), zeros), whole)
    for cut in (1, 3):
        assert same(chain.run(slice(cut, None), chain.run(slice(cut))), whole)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", [*ONCE, *MIXED])
def test_rule_9_an_op_rounds_once(name: str) -> None:
    case = case_of(name, BFLOAT16)
    assert same(rounded(case), case.run())


@pytest.mark.usefixtures("cuda")
@every_type
@pytest.mark.parametrize("name", ROWS)
def test_rule_16_a_sample_by_itself(name: str, dtype: np.dtype) -> None:
    case = ROWS[name](dtype)
    whole, count = case.run(), len(case.samples[0])
    for part in (slice(0, 1), slice(count - 1, count), slice(1, 4)):
        found = case.call(*(x[part] for x in case.samples), *case.shared)
        assert same(found, tuple(x[part] for x in whole))


@every_type
@pytest.mark.parametrize("name", [*ROWS, *MIXED, *CHAINS])
def test_rule_16_any_order_and_addresses(name: str, dtype: np.dtype, cuda: Any) -> None:
    case = case_of(name, dtype)
    expected = outputs(case)
    moved = tuple(unaligned(x) for x in case.samples)
    for _ in in_every_order(cuda):
        assert same(outputs(case), expected)
    if isinstance(case, Chain):
        assert same(Chain(moved, case.shapes, case.kernel).run(slice(None)), expected)
    else:
        assert same(case.call(*moved, *(unaligned(x) for x in case.shared)), expected)
