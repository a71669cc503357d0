"""Kernels of which the CUDA ones give the CPU's bits."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from kernel_backends import in_every_order, kernels
from kernel_checks import bits

from plait import _cpu


def assert_cpu_bits(call: Callable[[Any], Sequence[np.ndarray]]) -> None:
    """call(kernels) gives the same bits on either backend."""
    expected = [bits(x) for x in call(_cpu)]
    module = kernels("cuda")
    for _ in in_every_order(module):
        for i, (x, before) in enumerate(zip(call(module), expected, strict=True)):
            assert bits(x) == before, f"array {i} differs"
