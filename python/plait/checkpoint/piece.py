"""The unit of a checkpoint: one contiguous range of one global array, taken in C order.

Shards cut parameters in rows and ZeRO cuts them in flat ranges, so whatever a rank owns is a few
such ranges, and no layout has to be written down.
"""

import math
import socket
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from plait.errors import UserError

KINDS = ("master", "first", "second", "momentum", "buffer")

SAFETENSORS_NAMES = {
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float16): "F16",
    np.dtype(np.float32): "F32",
    np.dtype(np.float64): "F64",
    np.dtype(np.bool_): "BOOL",
    **{np.dtype(f"int{bits}"): f"I{bits}" for bits in (8, 16, 32, 64)},
    **{np.dtype(f"uint{bits}"): f"U{bits}" for bits in (8, 16, 32, 64)},
}
DTYPES = {dtype.name: dtype for dtype in SAFETENSORS_NAMES}


class CheckpointError(UserError):
    """A checkpoint cannot be written or read; the message names the file and the mend."""


class AccessError(CheckpointError):
    """The disk or its permissions refuse a checkpoint, which may well be whole."""


class Comm(Protocol):
    """What saving and loading ask of a communicator; at size 1 everything is an identity."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def gather_object(self, value: Any, root: int = 0) -> list[Any] | None: ...
    def broadcast_object(self, value: Any, root: int = 0) -> Any: ...
    def all_reduce(self, x: npt.NDArray[Any], op: Literal["sum", "max", "min"] = "sum") -> Any: ...


@dataclass(frozen=True, eq=False)
class Piece:
    """array (1-D, contiguous) holds the elements from `start` of the C-order flattening of the
    global array `name` of `shape`. Saving reads it, loading fills it."""

    name: str
    kind: str  # one of KINDS
    shape: tuple[int, ...]
    start: int
    array: npt.NDArray[Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def stop(self) -> int:
        return self.start + self.array.size

    @property
    def key(self) -> str:
        return key_of(self.name, self.kind)

    def check(self) -> None:
        """Raises ValueError where this is no range of its global array."""
        if self.kind not in KINDS:
            raise ValueError(f"piece of {self.name}: kind {self.kind!r} is none of {list(KINDS)}")
        if self.array.ndim != 1 or not self.array.flags.c_contiguous:
            raise ValueError(
                f"piece {self.key}: needs a contiguous 1-D array, got shape {self.array.shape} "
                f"with strides {self.array.strides}"
            )
        if self.dtype not in SAFETENSORS_NAMES:
            raise ValueError(f"piece {self.key}: no type {self.dtype} in a checkpoint")
        if not 0 <= self.start <= self.stop <= math.prod(self.shape):
            raise ValueError(
                f"piece {self.key}: elements {self.start} to {self.stop} of a global array of "
                f"shape {self.shape}, which has {math.prod(self.shape)}"
            )


def key_of(name: str, kind: str) -> str:
    """The name of an array in a manifest."""
    return f"{kind}/{name}"


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """The memory of a contiguous array, bfloat16 included."""
    return array.view(np.uint8).data


def where(comm: Comm) -> str:
    return f"rank {comm.rank} on host {socket.gethostname()}"
