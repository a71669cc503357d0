"""An array of another library, which only DLPack tells of: what torch's are to plait."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


class Other:
    """An array of another library: numpy's, of which only DLPack is seen. code: the type that it
    says it has; where: (kind of memory, device)."""

    def __init__(self, array: np.ndarray, code: int | None = None, where: tuple[int, int] = (1, 0)):
        self.array, self.code, self.where = array, code, where
        self.streams: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.where

    def __dlpack__(self, stream: Any = None) -> Any:
        self.streams.append(stream)
        capsule = self.array.__dlpack__()
        if self.code is not None:
            get = ctypes.pythonapi.PyCapsule_GetPointer
            get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
            at = get(capsule, b"dltensor")
            ctypes.c_uint8.from_address(at + 20).value = self.code  # behind data, device and ndim
        return capsule
