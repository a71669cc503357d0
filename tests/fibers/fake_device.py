"""Backend "cuda" without a GPU: fake_cupy.py with the CPU's kernels, or with fibers."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import fake_cupy

from plait import _cpu, backend


class NoArena:
    """In place of DeviceArena where no memory of the device can be shared."""

    def __init__(self, bytes: int):
        raise RuntimeError("this stand-in cannot")


class NoWindow:
    @staticmethod
    def block_bytes(size: int, staging: int) -> int:
        return staging


def cpu_kernels(peers: Any = None) -> Any:
    """plait._cpu's ops on device arrays, and on no others. peers: a module on fibers whose memory
    the ranks of a node can share; left out, they cannot."""

    def held(x: Any) -> Any:
        if isinstance(x, list):
            return [held(item) for item in x]
        assert not hasattr(x, "__array_interface__"), "a host array given to a device's kernel"
        return x._held if isinstance(x, fake_cupy.ndarray) else x

    def call(function: Any, *arguments: Any, **named: Any) -> Any:
        return function(*map(held, arguments), **{name: held(x) for name, x in named.items()})

    ops = {
        name: functools.partial(call, function)
        for name, function in vars(_cpu).items()
        if callable(function) and not isinstance(function, type)
    }
    shared = {
        name: getattr(peers, name)
        for name in ("DeviceArena", "DeviceMapping", "DeviceWindow", "ReduceSpec", "ProductSpec",
                     "device_identity", "reaches_device", "product_fits", "wgmma_available")
    } if peers else {
        "DeviceArena": NoArena, "DeviceWindow": NoWindow,
        "device_identity": fake_cupy.device_identity,
    }  # fmt: skip
    return SimpleNamespace(
        **{**ops, **shared}, LIMBS=_cpu.LIMBS, scratch_reserved=lambda: 0,
        set_stream=lambda _: None, check_faults=lambda: None,
        driver_version=lambda: 13000, runtime_version=lambda: 13000,
    )  # fmt: skip


HOST = {
    "device_identity",
    "reaches_device",
    "set_stream",
    "driver_version",
    "runtime_version",
    "scratch_reserved",
    "isa",
}
WAITS = {"exact_value", "fingerprint", "weighted_bits", "check_faults"}


def recorded(kernels: Any) -> Any:
    """Its ops, which a captured stream keeps for the graph."""

    def op(name: str, function: Any, *arguments: Any, **named: Any) -> Any:
        if fake_cupy.recording is None or name in HOST:
            return function(*arguments, **named)
        assert name not in WAITS, f"{name} waits for a captured stream"
        given = [fake_cupy.loose(x) for x in arguments]
        named = {key: fake_cupy.loose(x) for key, x in named.items()}
        fake_cupy.do(functools.partial(function, *given, **named))

    found = {name: x for name, x in vars(kernels).items() if not name.startswith("_")}
    ops = {
        name: functools.partial(op, name, x) if callable(x) and not isinstance(x, type) else x
        for name, x in found.items()
    }
    if "DeviceMapping" in found:
        ops["DeviceWindow"] = recorded_window(kernels.DeviceWindow)
    return SimpleNamespace(__spec__="of this file", **ops)


def recorded_window(window: Any) -> Any:
    """A DeviceWindow whose calls a captured stream keeps for the graph."""

    class Window(window):  # type: ignore[misc]
        def launch(self, call: Any, stage: int) -> None:
            fake_cupy.do(functools.partial(super().launch, call, stage))

    def prepared(name: str) -> Any:
        def prepare(self: Any, *arguments: Any) -> Any:
            given = arguments if fake_cupy.recording is None else map(fake_cupy.loose, arguments)
            return getattr(window, name)(self, *given)

        return prepare

    for name in ("reduction", "all_gather", "all_to_all", "broadcast"):
        setattr(Window, name, prepared(name))
    return Window


@contextmanager
def device(kernels: Any) -> Iterator[None]:
    """A device whose kernels are cpu_kernels(), or those of kernel_backends.fibers()."""
    modules = {
        "cupy": fake_cupy, "cupy.cuda.nccl": SimpleNamespace(available=False),
        "plait._cuda": recorded(kernels),
    }  # fmt: skip
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        backend.use("cpu")
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
