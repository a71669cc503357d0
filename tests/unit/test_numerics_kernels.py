"""The rules of docs/numerics.md that hold for every kernel: 3, 4, 9, 16 and 17. Bits, no bounds."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from kernel_cases import MIXED, ONCE, ROWS, Array, Case, Outputs
from kernel_chains import CHAINS, Chain
from kernel_checks import BFLOAT16, FLOAT32, STORAGE, assert_same_bits, bits

from plait import _cpu

# What is not a case, and where its rules are tested.
ELSEWHERE = {
    "tree_sum": "test_reduce", "convert": "test_reduce", "exact_sum": "test_reduce",
    "exact_value": "test_reduce", "fingerprint": "test_fingerprint",
    "weighted_bits": "test_fingerprint", "random_normal": "test_random",
    "dropout": "test_random", "cross_entropy_merge": "test_cross_entropy",
    "adamw": "test_optimizer", "sgd": "test_optimizer",
    "add_statistic": "test_batch_norm", "moving_average": "test_batch_norm",
}  # fmt: skip
CONTROLS = {
    "set_threads", "threads", "set_isa", "isa", "empty", "memory_use", "trim_memory", "address",
    "run_seconds",
}  # fmt: skip

every_type = pytest.mark.parametrize("dtype", STORAGE, ids=str)
every_row = pytest.mark.parametrize("name", ROWS)
every_case = pytest.mark.parametrize("name", [*ROWS, *MIXED, *CHAINS])
every_chain = pytest.mark.parametrize("name", CHAINS)


def case_of(name: str, dtype: np.dtype) -> Case | Chain:
    return ({**CHAINS, **MIXED, **ROWS}[name])(dtype)


def outputs(case: Case | Chain) -> Outputs:
    return case.run() if isinstance(case, Case) else case.run(slice(None))


def same(found: Outputs, expected: Outputs) -> bool:
    return [bits(x) for x in found] == [bits(x) for x in expected]


def test_every_kernel_is_a_case() -> None:
    kernels = {name for name in dir(_cpu) if callable(getattr(_cpu, name)) and name.islower()}
    cases = {name.split(" ")[0] for name in (*ROWS, *MIXED, *CHAINS)}
    assert kernels - {n for n in kernels if n.startswith("_")} == cases | {*ELSEWHERE, *CONTROLS}


@every_type
@every_chain
def test_rule_3_a_leaf_starts_fresh(name: str, dtype: np.dtype) -> None:
    """Whatever an earlier leaf left in the buffer, here NaN: as a chain that goes on from +0."""
    chain = CHAINS[name](dtype)
    zeros = tuple(np.zeros(shape, FLOAT32) for shape in chain.shapes)
    assert same(chain.run(slice(None)), chain.run(slice(None), zeros))
    assert all(np.isfinite(x).all() for x in zeros)


@every_type
@every_chain
def test_rule_4_beta_1_continues_the_chain(name: str, dtype: np.dtype) -> None:
    """At any cut between samples; a sum of two partial sums is another number."""
    chain = CHAINS[name](dtype)
    whole = chain.run(slice(None))
    for cut in (1, 3):
        assert same(chain.run(slice(cut, None), chain.run(slice(cut))), whole)
        pairs = zip(chain.run(slice(cut)), chain.run(slice(cut, None)))
        assert not same(tuple(a + b for a, b in pairs), whole)


@pytest.mark.parametrize("name", ONCE)
def test_rule_9_an_op_rounds_once(name: str) -> None:
    """In bfloat16 it is the float32 op of the same values, rounded where it stores."""
    case = ROWS[name](BFLOAT16)
    assert same(rounded(case), case.run())


@pytest.mark.parametrize("name", MIXED)
def test_rule_9_batch_norm_rounds_once(name: str) -> None:
    case = MIXED[name](BFLOAT16)
    assert same(rounded(case), case.run())


def rounded(case: Case) -> Outputs:
    """The float32 op of the same values; what bfloat16 stores is rounded."""
    wide = [x.astype(FLOAT32) if x.dtype == BFLOAT16 else x for x in (*case.samples, *case.shared)]
    pairs = zip(case.call(*wide), case.run(), strict=True)
    return tuple(x.astype(y.dtype) for x, y in pairs)


@every_type
@every_row
def test_rule_16_a_sample_by_itself(name: str, dtype: np.dtype) -> None:
    """An output has the same bits in a batch of any size."""
    case = ROWS[name](dtype)
    whole, count = case.run(), len(case.samples[0])
    for part in (slice(0, 1), slice(count - 1, count), slice(1, 4)):
        found = case.call(*(x[part] for x in case.samples), *case.shared)
        assert same(found, tuple(x[part] for x in whole))


@every_type
@every_case
def test_rule_16_any_path_threads_and_addresses(name: str, dtype: np.dtype) -> None:
    case = case_of(name, dtype)
    expected = outputs(case)

    def shifted() -> Outputs:
        moved = tuple(unaligned(x) for x in case.samples)
        if isinstance(case, Chain):
            return Chain(moved, case.shapes, case.kernel).run(slice(None))
        return case.call(*moved, *(unaligned(x) for x in case.shared))

    assert_same_bits(lambda: [*outputs(case), *shifted()])
    assert same(shifted(), expected)


def unaligned(x: Array) -> Array:
    """The same values one element off the alignment that numpy gives."""
    holder = np.empty(x.size + 1, x.dtype)
    holder[1:] = x.ravel()
    return holder[1:].reshape(x.shape)


FLUSH, UPWARD = 0x8040, 0x4000  # MXCSR of x86-64: denormals are zero and flushed; towards infinity


@contextmanager
def mxcsr(flags: int) -> Iterator[None]:
    """This thread as a library linked with -ffast-math may leave it."""
    libm, environment = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)()
    libm.fegetenv(environment)
    before, environment[7] = environment[7], environment[7] | flags
    libm.fesetenv(environment)
    try:
        yield
    finally:
        environment[7] = before
        libm.fesetenv(environment)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="flags are numbered otherwise")
@pytest.mark.parametrize("flags", [FLUSH, UPWARD])
@every_case
def test_rule_17_every_call_sets_the_flags(name: str, flags: int) -> None:
    """Of the calling thread and of the pool's, before its numbers become float32 too. Values, or
    their products, are denormal; the threads were started under the foreign flags."""
    case = case_of(name, FLOAT32)
    size = np.float32(1.0 if flags == UPWARD else 2.0**-66 if name in CHAINS else 2.0**-128)
    small = tuple(x * size if x.dtype == FLOAT32 else x for x in case.samples)

    def run() -> Outputs:
        if isinstance(case, Chain):
            return Chain(small, case.shapes, case.kernel).run(slice(None))
        return case.call(*small, *case.shared)

    expected = run()
    for threads in (1, 3):
        with mxcsr(flags):
            _cpu.set_threads(threads)
        try:
            with mxcsr(flags):
                found = run()
        finally:
            _cpu.set_threads(1)
        assert same(found, expected), f"{threads} threads"
