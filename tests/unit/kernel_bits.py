"""Kernels of which the CUDA ones give the CPU's bits."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from kernel_backends import kernels
from kernel_checks import bits

from plait import _cpu


def in_every_order(module: Any) -> Iterator[None]:
    """On fibers three times, with the threads of a block in another order each: what reads shared
    memory without a barrier shows. Elsewhere once."""
    if not hasattr(module, "set_fiber_order"):
        yield
        return
    try:
        for order in (0, 1, 7):
            module.set_fiber_order(order)
            yield
    finally:
        module.set_fiber_order(0)


def assert_cpu_bits(call: Callable[[Any], Sequence[np.ndarray]]) -> None:
    """call(kernels) gives the same bits on either backend."""
    expected = [bits(x) for x in call(_cpu)]
    module = kernels("cuda")
    for _ in in_every_order(module):
        for i, (x, before) in enumerate(zip(call(module), expected, strict=True)):
            assert bits(x) == before, f"array {i} differs"
