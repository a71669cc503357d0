"""Arrays of either kind: numpy's, and those of the device in use."""

from __future__ import annotations

from typing import Any

import numpy as np

from plait.backend import current, dlpack, host
from plait.backend.current import kernels
from plait.backend.host import Array, bfloat16, float32
from plait.backend.waiting import stream, wait


def _cupys(x: Array) -> Any:
    """A device's array: it has methods that numpy's have not."""
    return x


# --- making arrays --------------------------------------------------------------------------------


def empty(shape: int | tuple[int, ...], dtype: Any = float32) -> Array:
    """Uninitialised, in the memory of the backend in use."""
    if current.cuda is None:
        return host.empty(shape, dtype)
    array: Array = current.cuda.cupy.empty(shape, np.dtype(dtype))
    return array


def view(address: int, shape: tuple[int, ...], dtype: Any, owner: object) -> Array:
    """An array over memory of the device in use, which owner keeps."""
    assert current.cuda is not None
    array: Array = current.cuda.view(address, shape, dtype, owner)
    return array


def zeros(shape: int | tuple[int, ...], dtype: Any = float32) -> Array:
    out = empty(shape, dtype)
    if current.cuda is None:
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
    elif on_device(out) and x.dtype == bfloat16:  # CuPy 14 copies none with gaps
        out.view(np.uint16)[...] = x.view(np.uint16)
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
    if current.cuda is None or not on_device(x):
        return np.broadcast_to(x, shape)
    found: Array = current.cuda.cupy.broadcast_to(x, shape)
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
    return current.cuda is not None and isinstance(x, current.cuda.cupy.ndarray)


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
    if current.cuda is None:
        raise ValueError(
            f"an array of CUDA device {device}, and the backend in use is the CPU's: call "
            'plait.backend.use("cuda", local_rank) first'
        )
    if device != current.cuda.device:
        raise ValueError(
            f"an array of CUDA device {device}; this process works on {current.cuda.device}"
        )
    return dlpack.on_cuda(x, stream(), current.cuda.view)


def to_device(x: Array) -> Array:
    """x in the memory of the backend in use: itself, if it is there."""
    if current.cuda is None or on_device(x):
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
