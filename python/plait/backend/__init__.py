"""The backend in use: its kernels, and arrays in its memory.

numpy's arrays and plait._cpu, until use("cuda") takes CuPy's and plait._cuda for the rest of the
process: arrays that were made before stay what they are. What is said here to take an array takes
either kind.
"""

from __future__ import annotations

import importlib.util
import os
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import numpy as np

from plait.backend import dlpack, host
from plait.backend.cuda import Cuda, connect, disconnect
from plait.backend.dlpack import is_foreign
from plait.backend.host import POOLED, Array, bfloat16, float32
from plait.backend.recorder import Recorder

PRECISIONS = {"float32": float32, "bfloat16": bfloat16}

# The same object always: functions of the module in use are put into it.
kernels: Any = SimpleNamespace(**vars(host.kernels))
_cuda: Cuda | None = None
_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()  # each has a pool of its own
_most = [0]  # bytes, so far


def use(name: str, local_rank: int = 0) -> str:
    """Takes "cpu" or "cuda"; says what that is, such as "cuda (NVIDIA H200, device 0)". UserError
    if there is no such device here."""
    global _cuda
    if _cuda is not None:
        disconnect(_cuda)
        _cuda = None
    _cuda = connect(local_rank) if name == "cuda" else None
    kernels.__dict__.clear()
    kernels.__dict__.update(vars(host.kernels if _cuda is None else _cuda.kernels))
    return "cpu" if _cuda is None else f"cuda ({_cuda.name}, device {_cuda.device})"


def name() -> Literal["cpu", "cuda"]:
    return "cpu" if _cuda is None else "cuda"


def built() -> bool:
    """Whether this plait has kernels for CUDA."""
    return importlib.util.find_spec("plait._cuda") is not None


def memory_bytes() -> int:
    """Device memory that this process has reserved, at most so far; 0 on the CPU."""
    if _cuda is None:
        return 0
    pools = [_cuda.cupy.get_default_memory_pool(), *(each.pool for each in _recorders)]
    now = sum(pool.total_bytes() for pool in pools) + int(_cuda.kernels.scratch_reserved())
    now += sum(each.reserved for each in _shared)
    _most.append(max(now, _most.pop()))
    return _most[0]


def device_limit() -> int:
    """Bytes of the device's memory; 0 on the CPU."""
    return 0 if _cuda is None else int(_cuda.cupy.cuda.runtime.memGetInfo()[1])


def device_identity() -> str:
    """Which device of its host it is, the same for every process that uses it, whatever number
    each sees it by; "" on the CPU."""
    if _cuda is None:
        return ""
    uuid, place, _ = _cuda.kernels.device_identity()  # parts of a device (MIG) share their place
    return f"{place} {uuid}"


def check_faults() -> None:
    """ValueError for what a kernel found wrong in its data, such as a target beyond the
    vocabulary; the CPU's kernels say so at once."""
    if _cuda is not None:
        wait()
        _cuda.kernels.check_faults()


class Watch(Protocol):
    """What must be looked after while the host waits for the device."""

    def look(self) -> None:
        """Takes microseconds; raises if what the device waits for will never come."""


class Shared(Protocol):
    """Device memory beside CuPy's."""

    @property
    def reserved(self) -> int:
        """Bytes."""
        ...

    def keep(self, on: bool) -> None:
        """Until keep(False), what is allocated is a recorded graph's."""


_shared: weakref.WeakSet[Shared] = weakref.WeakSet()


def note_shared(each: Shared) -> None:
    _shared.add(each)


_watches: weakref.WeakSet[Watch] = weakref.WeakSet()


def watch(each: Watch) -> None:
    """each.look() is called whenever the host waits for the device, as long as there is an each."""
    _watches.add(each)


def done() -> bool:
    """Whether the device has done all that it was told."""
    return _cuda is None or bool(_cuda.stream.done)


def mark() -> Callable[[], bool]:
    """Tells whether the device has done what it was told until now."""
    if _cuda is None:
        return done
    event = _cuda.cupy.cuda.Event(disable_timing=True)
    event.record(_cuda.stream)
    return lambda: bool(event.done)


def synchronize() -> None:
    """As wait(), but everything else stands still."""
    if _cuda is not None:
        _cuda.stream.synchronize()


def wait() -> None:
    """Until done(). A kernel may wait for a peer that waits for this host: all that is watched goes
    on meanwhile."""
    if _cuda is None or not _watches:
        return  # whatever waits for the stream itself does that best
    while not done():
        _look()
        os.sched_yield()
    _look()


def _look() -> None:
    for each in tuple(_watches):
        each.look()


def recorder() -> Recorder | None:
    """For work of the device in use; None on the CPU."""
    if _cuda is None:
        return None
    made = Recorder(_cuda.cupy, _shared)
    _recorders.add(made)
    return made


def nccl() -> Any:
    """CuPy's module of that name; None on the CPU, or where CuPy finds no NCCL."""
    if _cuda is None or not _cuda.cupy.cuda.nccl.available:
        return None
    return _cuda.cupy.cuda.nccl


def stream() -> int:
    """The address of the CUDA stream that everything runs on; 0 on the CPU."""
    return 0 if _cuda is None else int(_cuda.stream.ptr)


def trim() -> None:
    """Gives memory that no array uses back to the system."""
    host.kernels.trim_memory()
    if _cuda is not None:
        _cuda.cupy.get_default_memory_pool().free_all_blocks()


def _cupys(x: Array) -> Any:
    """A device's array: it has methods that numpy's have not."""
    return x


# --- making arrays --------------------------------------------------------------------------------


def empty(shape: int | tuple[int, ...], dtype: Any = float32) -> Array:
    """Uninitialised, in the memory of the backend in use."""
    if _cuda is None:
        return host.empty(shape, dtype)
    array: Array = _cuda.cupy.empty(shape, np.dtype(dtype))
    return array


def view(address: int, shape: tuple[int, ...], dtype: Any, owner: object) -> Array:
    """An array over memory of the device in use, which owner keeps."""
    assert _cuda is not None
    array: Array = _cuda.view(address, shape, dtype, owner)
    return array


def zeros(shape: int | tuple[int, ...], dtype: Any = float32) -> Array:
    out = empty(shape, dtype)
    if _cuda is None:
        bits(out).fill(0)
    else:
        _cupys(out).data.memset_async(0, out.nbytes)
    return out


def beside(x: Array, shape: int | tuple[int, ...], dtype: Any) -> Array:
    """Uninitialised, in the kind of memory that x lies in."""
    return empty(shape, dtype) if on_device(x) else host.empty(shape, dtype)


def copied(x: Array) -> Array:
    """Contiguous, whatever x is, and beside it."""
    out = beside(x, x.shape, x.dtype)
    assign(out, x)
    return out


def assign(out: Array, x: Array) -> None:
    """out[...] = x, for arrays of one kind and shape."""
    if on_device(out) and _plain(out) and _plain(x):
        kernels.convert(x, out)
    else:
        out[...] = x


def _plain(x: Array) -> bool:
    """Whether kernels read it as it lies: floats, in runs without gaps."""
    runs = x.ndim == 0 or x.shape[-1] <= 1 or x.strides[-1] == x.itemsize
    return runs and x.dtype in (float32, bfloat16)


def fill(x: Array, value: float) -> None:
    """Every element."""
    if not on_device(x):
        x.fill(value)
    elif not x.flags.c_contiguous:  # CuPy would compile a kernel
        for part in x:
            fill(part, value)
    elif value == 0:
        x.fill(0)
    else:
        _set(x, np.full(x.shape, value, x.dtype))


def repeated(x: Array, count: int) -> Array:
    """(count, *x.shape): x count times, without copies; not to be written to."""
    shape = (count, *x.shape)
    if _cuda is None or not on_device(x):
        return np.broadcast_to(x, shape)
    found: Array = _cuda.cupy.broadcast_to(x, shape)
    return found


def contiguous(x: Array) -> Array:
    return x if x.flags.c_contiguous else copied(x)


def as_type(x: Array, dtype: Any) -> Array:
    """x, or a copy of another float type."""
    if x.dtype == dtype:
        return x
    if not on_device(x):
        return x.astype(dtype)
    out = empty(x.shape, dtype)
    kernels.convert(contiguous(x), out)
    return out


def bits(x: Array) -> Array:
    """The same memory as unsigned integers, of 32 bits where it can be: sums of bits with zeros
    elsewhere select exactly."""
    pairs = x.itemsize == 2 and x.ndim > 0 and x.shape[-1] % 2 == 0 and x.flags.c_contiguous
    return x.view(np.dtype("u4" if pairs else f"u{x.dtype.itemsize}"))


# --- between host and device ----------------------------------------------------------------------


def on_device(x: Any) -> bool:
    """Whether x is an array of a device's memory."""
    return _cuda is not None and isinstance(x, _cuda.cupy.ndarray)


def from_dlpack(x: Any) -> Array:
    """An array of another library (torch, JAX) as one of the backend's, without a copy; work on it
    comes after what that library has started. ValueError if it lies where this process does not
    work, or if numpy has no such type."""
    kind, device = dlpack.place(x)
    if kind in (dlpack.HOST, dlpack.PINNED):
        return dlpack.on_host(x)
    if kind not in (dlpack.CUDA, dlpack.MANAGED):
        raise ValueError(
            f"an array of DLPack's device type {kind}: needed are the host's or CUDA's"
        )
    if _cuda is None:
        raise ValueError(
            f"an array of CUDA device {device}, and the backend in use is the CPU's: call "
            'plait.backend.use("cuda", local_rank) first'
        )
    if device != _cuda.device:
        raise ValueError(f"an array of CUDA device {device}; this process works on {_cuda.device}")
    return dlpack.on_cuda(x, stream(), _cuda.view)


def to_device(x: Array) -> Array:
    """x in the memory of the backend in use: itself, if it is there."""
    if _cuda is None or on_device(x):
        return x
    out = empty(x.shape, x.dtype)
    _set(out, x)
    return out


def _set(out: Array, x: Array) -> None:
    """CUDA may wait for the stream when it copies memory that is not pinned: nothing would go on
    meanwhile."""
    wait()
    _cupys(out).set(np.asarray(x, order="C"))


def to_host(x: Array) -> Array:
    """x as a numpy array, complete: itself, if it is one."""
    if not on_device(x):
        return x
    whole = contiguous(x)
    wait()
    found: Array = _cupys(whole).get()
    return found


def put(out: Array, x: Array) -> None:
    """out[...] = x, for a host's x."""
    if on_device(out) and out.flags.c_contiguous:
        _set(out, x)
    elif on_device(out):
        assign(out, to_device(x))
    elif out is not x:
        out[...] = x


def kernels_of(x: Array) -> Any:
    """The kernels that work on x."""
    return kernels if on_device(x) else host.kernels


def address(x: Array) -> int:
    return int(_cupys(x).data.ptr if on_device(x) else host.kernels.address(x))


def share_memory(x: Array, y: Array) -> bool:
    """Whether they may have bytes in common; arrays of a device only if their ranges overlap."""
    if on_device(x) != on_device(y):
        return False
    if not on_device(x):
        return np.may_share_memory(x, y)
    (a, b), (c, d) = _range(x), _range(y)
    return a < d and c < b


def same_array(x: Array, y: Array) -> bool:
    """Whether they are one array, perhaps by two views."""
    if x is y:
        return True
    alike = x.shape == y.shape and x.dtype == y.dtype and x.strides == y.strides
    return alike and on_device(x) == on_device(y) and address(x) == address(y)


def _range(x: Array) -> tuple[int, int]:
    if x.size == 0:
        return address(x), address(x)
    reach = sum((n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True))
    return address(x), address(x) + reach + x.itemsize


def writeable(x: Array) -> bool:
    return on_device(x) or bool(x.flags.writeable)


__all__ = [
    "POOLED",
    "PRECISIONS",
    "Array",
    "address",
    "as_type",
    "assign",
    "beside",
    "bfloat16",
    "bits",
    "built",
    "check_faults",
    "contiguous",
    "copied",
    "device_identity",
    "device_limit",
    "done",
    "empty",
    "fill",
    "float32",
    "from_dlpack",
    "is_foreign",
    "kernels",
    "kernels_of",
    "mark",
    "memory_bytes",
    "name",
    "nccl",
    "note_shared",
    "on_device",
    "put",
    "recorder",
    "repeated",
    "same_array",
    "share_memory",
    "stream",
    "synchronize",
    "to_device",
    "to_host",
    "trim",
    "use",
    "view",
    "wait",
    "watch",
    "writeable",
    "zeros",
]
