"""The kernels of both backends on numpy arrays: plait._cpu's, and those of csrc/cuda.

On a machine with a GPU the latter are plait._cuda's, on copies of the arrays; elsewhere they are
csrc/cuda compiled for the CPU (tests/fibers, `make fibers`).
"""

import ctypes
import functools
import importlib.machinery
import importlib.util
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from plait import _cpu

ROOT = Path(__file__).resolve().parents[2]


def fibers() -> ModuleType:
    """csrc/cuda on the CPU."""
    name = "_cuda" + sysconfig.get_config_var("EXT_SUFFIX")
    found = sorted((ROOT / "build").glob(f"fibers*/{name}"))
    assert found, f"no build/fibers*/{name}: run make fibers"
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(found[0]))
    spec = importlib.util.spec_from_loader("_cuda", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class OnDevice:
    """plait._cuda on copies of numpy arrays: views keep their strides, and what they share."""

    def __init__(self) -> None:
        import cupy

        from plait import _cuda

        self.cupy, self.module = cupy, _cuda

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.module, name)
        return functools.partial(self.call, function) if callable(function) else function

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        memory: dict[int, tuple[np.ndarray, Any]] = {}

        def there(x: Any) -> Any:
            if isinstance(x, list):
                return [there(item) for item in x]
            if not isinstance(x, np.ndarray):
                return x
            root = x
            while isinstance(root.base, np.ndarray):
                root = root.base
            low, high = np.lib.array_utils.byte_bounds(root)
            if id(root) not in memory:
                pointer = ctypes.cast(low, ctypes.POINTER(ctypes.c_uint8))
                raw = np.ctypeslib.as_array(pointer, (high - low,))
                memory[id(root)] = raw, self.cupy.asarray(raw)
            data = memory[id(root)][1].data + (x.__array_interface__["data"][0] - low)
            return self.cupy.ndarray(x.shape, x.dtype, memptr=data, strides=x.strides)

        there_named = {name: there(x) for name, x in named.items()}
        result = function(*(there(x) for x in arguments), **there_named)
        for raw, copy in memory.values():
            if raw.size and raw.flags.writeable:
                raw[...] = copy.get()
        return result


@functools.cache
def kernels(backend: str) -> Any:
    if backend == "cpu":
        return _cpu
    if importlib.util.find_spec("plait._cuda"):
        return OnDevice()
    return fibers()


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


def in_orders(module: Any, call: Callable[[], Any]) -> list[Any]:
    """What call() gives in each of these orders."""
    return [call() for _ in in_every_order(module)]
