"""Arrays of other libraries without a copy, by DLPack (dmlc.github.io/dlpack): torch's, JAX's.

Read here rather than by numpy, which knows no bfloat16.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from plait.backend.host import Array, bfloat16

HOST, CUDA, PINNED, MANAGED = 1, 2, 3, 13  # where memory is
_TYPES: dict[int, dict[int, Any]] = {  # by code and bits
    0: {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64},
    1: {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64},
    2: {16: np.float16, 32: np.float32, 64: np.float64},
    4: {16: bfloat16},
    5: {64: np.complex64, 128: np.complex128},
    6: {8: np.bool_},
}
_NAME, _USED = b"dltensor", b"used_dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    )


_api = ctypes.pythonapi
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)


class Foreign:
    """What somebody else's capsule describes, given back when this is gone. strides in bytes."""

    def __init__(self, capsule: Any):
        self._pointer: int = _api.PyCapsule_GetPointer(capsule, _NAME)
        self._managed = _Managed.from_address(self._pointer)
        _api.PyCapsule_SetName(capsule, _USED)
        tensor = self._managed.tensor
        self.dtype = _dtype(tensor.code, tensor.bits, tensor.lanes)
        self.shape: tuple[int, ...] = tuple(tensor.shape[: tensor.ndim])
        item = self.dtype.itemsize
        if tensor.strides:
            self.strides = tuple(item * each for each in tensor.strides[: tensor.ndim])
        else:
            self.strides = tuple(
                item * math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))
            )
        self.address = (tensor.data or 0) + tensor.byte_offset

    def __del__(self) -> None:
        if hasattr(self, "_managed") and self._managed.deleter:
            self._managed.deleter(self._pointer)

    @property
    def reach(self) -> int:
        """Bytes from its first element to the end of its last."""
        if 0 in self.shape:
            return 0
        far = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return int(far + self.dtype.itemsize)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Bit for bit: numpy's types only."""
        kind = self.dtype.str if self.dtype.kind != "V" else f"<u{self.dtype.itemsize}"
        return {
            "version": 3, "typestr": kind, "shape": self.shape, "strides": self.strides,
            "data": (self.address, False),
        }  # fmt: skip


def is_foreign(x: object) -> bool:
    """Whether x is an array that is not numpy's, but can be had without a copy: CuPy's are too."""
    return not isinstance(x, np.ndarray) and hasattr(x, "__dlpack__")


def place(x: Any) -> tuple[int, int]:
    """The kind of memory that x lies in, and the number of its device."""
    kind, device = x.__dlpack_device__()
    return int(kind), int(device)


def on_host(x: Any) -> Array:
    """x, in host memory, as a numpy array. BufferError if it cannot be written to."""
    found = Foreign(x.__dlpack__())
    array: Array = np.asarray(found)
    return array if array.dtype == found.dtype else array.view(found.dtype)


def on_cuda(x: Any, stream: int, view: Callable[..., Any]) -> Array:
    """x on the device in use, for work on this stream; view(address, shape, dtype, owner, strides,
    bytes) makes the array."""
    found = Foreign(x.__dlpack__(stream=stream))
    array: Array = view(found.address, found.shape, found.dtype, found, found.strides, found.reach)
    return array


def _dtype(code: int, bits: int, lanes: int) -> np.dtype[Any]:
    kind = _TYPES.get(code, {}).get(bits) if lanes == 1 else None
    if kind is None:
        raise ValueError(
            f"an array of DLPack's type {code} with {bits} bits x {lanes}, which numpy has not"
        )
    found: np.dtype[Any] = np.dtype(kind)
    return found
