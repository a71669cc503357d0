"""As much of CuPy as plait uses, on host memory: an array of a device that is none.

It refuses what would quietly copy to the host, and all that CuPy would compile a kernel for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

__version__ = "14.0.0"


recording: list[Callable[[], Any]] | None = None  # what a stream that is captured was told


def do(work: Callable[[], Any]) -> None:
    """Now, or when the graph is launched."""
    work() if recording is None else recording.append(work)


class UnownedMemory:
    """Memory of the device that somebody else owns; freed memory is a segmentation fault here."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int):
        self.ptr, self.size, self.owner = ptr, size, owner


class MemoryPointer:
    def __init__(self, mem: UnownedMemory, offset: int):
        self.mem, self.ptr = mem, mem.ptr + offset


class _Bytes:
    """The bytes of a MemoryPointer for numpy, which keeps this alive."""

    def __init__(self, pointer: MemoryPointer):
        self.pointer = pointer
        data = (pointer.ptr, False)
        shape = (pointer.mem.size,)
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": shape, "data": data}


def loose(x: Any) -> Any:
    """x as a graph knows it: where somebody else owns the memory it is an address, which keeps
    nothing. (A pool keeps what a graph was recorded with.)"""
    if isinstance(x, (list, tuple)):
        return type(x)(map(loose, x))
    root = x._held if isinstance(x, ndarray) else None
    while isinstance(root, np.ndarray):
        root = root.base
    if not isinstance(root, _Bytes):
        return x
    low, high = np.lib.array_utils.byte_bounds(x._held)
    memory = UnownedMemory(x.data.ptr, high - low, None, 0)
    assert x.data.ptr == low, "an array that goes backwards"
    return ndarray(x.shape, x.dtype, MemoryPointer(memory, 0), x.strides)


class Pointer:
    def __init__(self, array: np.ndarray):
        self._array, self.ptr = array, array.__array_interface__["data"][0]

    def memset_async(self, value: int, size: int) -> None:
        assert self._array.flags.c_contiguous
        assert size == self._array.nbytes
        raw = loose(ndarray(self._array))._held.view(np.uint8)
        do(lambda: raw.fill(value))


class ndarray:
    __array_ufunc__ = None

    def __init__(
        self,
        held: Any,
        dtype: Any = None,
        memptr: MemoryPointer | None = None,
        strides: tuple[int, ...] | None = None,
    ):
        """CuPy's (shape, dtype, memptr), or an array of numpy's that stands for the memory."""
        if memptr is not None:
            held = np.ndarray(held, dtype, np.asarray(_Bytes(memptr)), strides=strides)
        self._held = held

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion of a device array to numpy")

    shape = property(lambda self: self._held.shape)
    dtype = property(lambda self: self._held.dtype)
    ndim = property(lambda self: self._held.ndim)
    size = property(lambda self: self._held.size)
    nbytes = property(lambda self: self._held.nbytes)
    itemsize = property(lambda self: self._held.itemsize)
    strides = property(lambda self: self._held.strides)
    data = property(lambda self: Pointer(self._held))

    @property
    def flags(self) -> Any:
        return SimpleNamespace(c_contiguous=self._held.flags.c_contiguous)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        about = self._held.__array_interface__
        strides = None if self._held.flags.c_contiguous else self._held.strides
        data = (about["data"][0], False)
        typestr = self._held.dtype.str
        return {"shape": self.shape, "typestr": typestr, "data": data, "strides": strides}

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, where: Any) -> ndarray:
        found = self._held[where]
        if not isinstance(found, np.ndarray):
            found = self._held[(*where,) if isinstance(where, tuple) else (where,)][...]
            found = self._held[where : where + 1].reshape(()) if isinstance(where, int) else found
        assert found.base is not None, "an index that copies"
        return ndarray(found)

    def __setitem__(self, where: Any, value: Any) -> None:
        assert isinstance(value, ndarray), "a number or a host array is assigned to a device array"
        assert value.dtype == self.dtype
        out, x = loose(self)._held, loose(value)._held
        moved = out[where].flags.c_contiguous and x.flags.c_contiguous
        assert moved or x.dtype != ml_dtypes.bfloat16, (
            "CuPy has no kernel that copies bfloat16 with gaps"
        )
        do(lambda: out.__setitem__(where, x))

    def __iter__(self) -> Any:
        return (ndarray(x) for x in self._held)

    def reshape(self, *shape: Any) -> ndarray:
        found = self._held.reshape(*shape)
        assert found.size == 0 or np.may_share_memory(found, self._held), "a reshape that copies"
        return ndarray(found)

    def ravel(self) -> ndarray:
        return self.reshape(-1)

    def transpose(self, *axes: Any) -> ndarray:
        return ndarray(self._held.transpose(*axes))

    def view(self, dtype: Any) -> ndarray:
        return ndarray(self._held.view(dtype))

    def fill(self, value: float) -> None:
        assert value == 0, "CuPy compiles a kernel to fill with anything but 0"
        assert self._held.flags.c_contiguous, "CuPy compiles a kernel to fill what has gaps"
        out = loose(self)._held
        do(lambda: out.fill(value))

    def get(self) -> np.ndarray:
        assert recording is None, "a captured stream is waited for"
        return self._held.copy()

    def set(self, x: np.ndarray) -> None:
        assert type(x) is np.ndarray
        assert recording is None, "a host array is copied while a stream is captured"
        assert x.shape == self.shape
        assert x.dtype == self.dtype
        assert self._held.flags.c_contiguous, "CuPy sets whole arrays only"
        self._held[...] = x


def empty(shape: Any, dtype: Any) -> ndarray:
    held = np.empty(shape, dtype)
    held.view(np.uint8).fill(0xFF) if held.ndim else None  # NaN: nothing may count on zeros
    return ndarray(held)


def broadcast_to(x: ndarray, shape: Any) -> ndarray:
    found = ndarray(np.broadcast_to(x._held, shape))
    return found


class Graph:
    launches = 0

    def __init__(self, works: list[Callable[[], Any]]):
        self._works = works

    def launch(self) -> None:
        Graph.launches += 1
        for work in self._works:
            work()


class Stream:
    null: Any
    current: Any

    def __init__(self, non_blocking: bool = False):
        self.ptr = id(self)

    def use(self) -> None:
        Stream.current = self

    def synchronize(self) -> None:  # all is done at once
        _raise_fault()

    def begin_capture(self, mode: int) -> None:
        global recording
        assert self is not Stream.null
        recording = []

    def end_capture(self) -> Graph:
        global recording
        assert recording is not None
        works, recording = recording, None
        return Graph(works)


Stream.null = Stream.current = Stream()


class Event:
    def __init__(self, disable_timing: bool = False):
        self.ptr = id(self)

    def record(self, stream: Stream) -> None:
        assert stream is Stream.current
        assert recording is None, "an event of a captured stream is asked whether it is done"

    def synchronize(self) -> None:
        _raise_fault()


class MemoryPool:
    def malloc(self, size: int) -> None:
        pass

    def total_bytes(self) -> int:
        return 1 << 10


fault = 0  # of a kernel: what CUDA answers to whatever it is asked from then on


def _raise_fault() -> None:
    if fault not in (0, 600):  # 600: it goes on
        raise RuntimeError(f"cudaErrorIllegalAddress: {fault}")


def _query(address: int) -> int:
    assert recording is None, "a captured stream is asked whether it is done"
    return fault


# Visible devices: their place on the host's bus, and UUID. Tests set others.
devices = [("0000:01:00.0", b"\x01" * 16)]
in_use = 0


class Device:
    def __init__(self, number: int):
        assert 0 <= number < len(devices)
        self._number = number

    def use(self) -> None:
        global in_use
        in_use = self._number


def device_identity() -> tuple[str, str, str]:
    place, uuid = devices[in_use]
    return uuid.hex(), place, "fibers of a CPU"


def get_default_memory_pool() -> Any:
    return SimpleNamespace(total_bytes=lambda: 1 << 20, free_all_blocks=lambda: None)


cuda = SimpleNamespace(
    Event=Event,
    MemoryPointer=MemoryPointer,
    MemoryPool=MemoryPool,
    Stream=Stream,
    UnownedMemory=UnownedMemory,
    alloc_pinned_memory=bytearray,
    get_current_stream=lambda: Stream.current,
    using_allocator=lambda _: contextlib.nullcontext(),
    Device=Device,
    runtime=SimpleNamespace(
        getDeviceCount=lambda: len(devices),
        streamCaptureModeRelaxed=2,
        streamQuery=_query,
        eventQuery=_query,
        memGetInfo=lambda: (1 << 30, 1 << 30),
        getDeviceProperties=lambda _: {"name": b"fibers of a CPU", "major": 8, "minor": 0},
    ),
)
