"""The thread pool beside forks and other threads; the rounding mode that every op starts with."""

import ctypes
import os
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from kernel_checks import random

from plait import _cpu

FE_UPWARD = 0x800  # x86-64, fenv.h


def relu(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    _cpu.relu_forward(x, out)
    return out


def test_a_forked_child_has_a_pool_of_its_own() -> None:
    """In a process of its own, for a fork beside threads warns from Python 3.12 on."""
    program = (
        "import os, numpy as np; from plait import _cpu\n"
        "x = np.ones((2000, 1000), np.float32)\n"
        "_cpu.set_threads(4); _cpu.relu_forward(x, np.empty_like(x))\n"
        "child = os.fork()\n"
        "_cpu.set_threads(3)\n"
        "for _ in range(20): out = np.empty_like(x); _cpu.relu_forward(x, out)\n"
        "assert out.all() and _cpu.threads() == 3\n"
        "if child == 0: os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)


def test_threads_may_be_set_from_many_threads() -> None:
    before, x = _cpu.threads(), np.ones((1000, 1000), np.float32)

    def change() -> None:
        for number in range(100):
            _cpu.set_threads(2 + number % 2)

    changing = [threading.Thread(target=change) for _ in range(3)]
    for thread in changing:
        thread.start()
    while any(thread.is_alive() for thread in changing):
        assert relu(x).all()
    for thread in changing:
        thread.join()
    _cpu.set_threads(before)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="rounding modes are numbered otherwise")
def test_every_op_rounds_to_nearest() -> None:
    """Whatever another library left in this thread. numpy would round otherwise too: the arrays are
    there before, and the other arguments are exact in float32."""
    gradient, weight, first = (random((1000,), seed=seed) for seed in (1, 2, 3))
    libm, found = ctypes.CDLL("libm.so.6"), []
    for mode in (0, FE_UPWARD):
        arrays = [weight.copy(), first.copy(), np.abs(first), weight.astype(ml_dtypes.bfloat16)]
        libm.fesetround(mode)
        try:
            _cpu.adamw(gradient, 0.75, 0.125, 0.875, 0.9375, 2**-20, 0.125, 3, *arrays)
        finally:
            libm.fesetround(0)
        found.append([x.tobytes() for x in arrays])
    assert found[0] == found[1]


def test_arrays_of_foreign_byte_order_are_refused() -> None:
    x = np.ones((2, 3), np.dtype(np.float32).newbyteorder())
    with pytest.raises(TypeError):
        relu(x)
