"""Backend "cuda" without a GPU: fake_cupy.py with the CPU's kernels, or with fibers."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import fake_cupy

from plait import _cpu, backend


def cpu_kernels() -> Any:
    """plait._cpu's ops on device arrays, and on no others."""

    def held(x: Any) -> Any:
        if isinstance(x, list):
            return [held(item) for item in x]
        assert not hasattr(x, "__array_interface__"), "a host array given to a device's kernel"
        return x._held if isinstance(x, fake_cupy.ndarray) else x

    def call(function: Any, *arguments: Any) -> Any:
        return function(*map(held, arguments))

    ops = {
        name: functools.partial(call, function)
        for name, function in vars(_cpu).items()
        if callable(function) and not isinstance(function, type)
    }
    versions = {"driver_version": lambda: 13000, "runtime_version": lambda: 13000}
    return SimpleNamespace(
        __spec__="of this file", **ops, **versions, LIMBS=_cpu.LIMBS, scratch_reserved=lambda: 0
    )


@contextmanager
def device(kernels: Any) -> Iterator[None]:
    """A device whose kernels are cpu_kernels(), or those of kernel_backends.fibers()."""
    before = {name: sys.modules.get(name) for name in ("cupy", "plait._cuda")}
    sys.modules.update({"cupy": fake_cupy, "plait._cuda": kernels})
    try:
        yield
    finally:
        backend.use("cpu")
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
