"""As much of CuPy as plait uses, on host memory: an array of a device that is none.

It refuses what would quietly copy to the host, and all that CuPy would compile a kernel for.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

__version__ = "14.0.0"


class Pointer:
    def __init__(self, array: np.ndarray):
        self._array, self.ptr = array, array.__array_interface__["data"][0]

    def memset_async(self, value: int, size: int) -> None:
        assert self._array.flags.c_contiguous
        assert size == self._array.nbytes
        self._array.view(np.uint8).fill(value)


class ndarray:
    __array_ufunc__ = None

    def __init__(self, held: np.ndarray):
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
        self._held[where] = value._held

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
        self._held.fill(value)

    def get(self) -> np.ndarray:
        return self._held.copy()

    def set(self, x: np.ndarray) -> None:
        assert type(x) is np.ndarray
        assert x.shape == self.shape
        assert x.dtype == self.dtype
        self._held[...] = x


def empty(shape: Any, dtype: Any) -> ndarray:
    held = np.empty(shape, dtype)
    held.view(np.uint8).fill(0xFF) if held.ndim else None  # NaN: nothing may count on zeros
    return ndarray(held)


def broadcast_to(x: ndarray, shape: Any) -> ndarray:
    found = ndarray(np.broadcast_to(x._held, shape))
    return found


class Device:
    def __init__(self, number: int):
        assert number == 0

    def use(self) -> None:
        pass


def get_default_memory_pool() -> Any:
    return SimpleNamespace(total_bytes=lambda: 1 << 20, free_all_blocks=lambda: None)


cuda = SimpleNamespace(
    Device=Device,
    runtime=SimpleNamespace(
        getDeviceCount=lambda: 1,
        memGetInfo=lambda: (1 << 30, 1 << 30),
        getDeviceProperties=lambda _: {"name": b"fibers of a CPU", "major": 8, "minor": 0},
    ),
)
