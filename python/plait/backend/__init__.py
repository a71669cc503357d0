"""The backend in use: its kernels, and arrays in its memory.

numpy's arrays and plait._cpu, until use("cuda") takes CuPy's and plait._cuda for the rest of the
process: arrays that were made before stay what they are. What is said here to take an array takes
either kind.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
import weakref
from typing import Any, Literal, Protocol

from plait.backend import current, host
from plait.backend.arrays import (
    address,
    as_type,
    assign,
    beside,
    bits,
    contiguous,
    copied,
    empty,
    fill,
    from_dlpack,
    kernels_of,
    on_device,
    put,
    repeated,
    same_array,
    share_memory,
    to_device,
    to_host,
    view,
    writeable,
    zeros,
)
from plait.backend.cuda import connect, disconnect
from plait.backend.current import kernels
from plait.backend.dlpack import is_foreign
from plait.backend.host import POOLED, Array, bfloat16, float32
from plait.backend.recorder import Recorder
from plait.backend.waiting import (
    check_faults,
    done,
    mark,
    stream,
    synchronize,
    wait,
    watch,
)

PRECISIONS = {"float32": float32, "bfloat16": bfloat16}

_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()  # each has a pool of its own
_most = [0]  # bytes, so far


def use(name: str, local_rank: int = 0) -> str:
    """Takes "cpu" or "cuda"; says what that is, such as "cuda (NVIDIA H200, device 0)". UserError
    if there is no such device here."""
    if current.cuda is not None:
        disconnect(current.cuda)
        current.cuda = None
    found = current.cuda = connect(local_rank) if name == "cuda" else None
    kernels.__dict__.clear()
    kernels.__dict__.update(vars(host.kernels if found is None else found.kernels))
    return "cpu" if found is None else f"cuda ({found.name}, device {found.device})"


def name() -> Literal["cpu", "cuda"]:
    return "cpu" if current.cuda is None else "cuda"


def built() -> bool:
    """Whether this plait has kernels for CUDA."""
    return importlib.util.find_spec("plait._cuda") is not None


def memory_bytes() -> int:
    """Device memory that this process has reserved, at most so far; 0 on the CPU."""
    if current.cuda is None:
        return 0
    pools = [current.cuda.cupy.get_default_memory_pool(), *(each.pool for each in _recorders)]
    now = sum(pool.total_bytes() for pool in pools) + int(current.cuda.kernels.scratch_reserved())
    now += sum(each.reserved for each in _shared)
    _most.append(max(now, _most.pop()))
    return _most[0]


def device_limit() -> int:
    """Bytes of the device's memory; 0 on the CPU."""
    return 0 if current.cuda is None else int(current.cuda.cupy.cuda.runtime.memGetInfo()[1])


def device_identity() -> str:
    """Which device of its host it is, the same for every process that uses it, whatever number
    each sees it by; "" on the CPU."""
    if current.cuda is None:
        return ""
    uuid, place, _ = (
        current.cuda.kernels.device_identity()
    )  # parts of a device (MIG) share their place
    return f"{place} {uuid}"


class Shared(Protocol):
    """Device memory beside CuPy's."""

    @property
    def reserved(self) -> int:
        """Bytes."""
        ...

    def keep(self, on: bool) -> None:
        """Until keep(False), what is allocated is a recorded graph's."""

    def forget(self) -> None:
        """There is no such graph: what was allocated for it is given back."""


_shared: weakref.WeakSet[Shared] = weakref.WeakSet()


def note_shared(each: Shared) -> None:
    _shared.add(each)


def recorder() -> Recorder | None:
    """For work of the device in use; None on the CPU."""
    if current.cuda is None:
        return None
    made = Recorder(current.cuda.cupy, _shared)
    _recorders.add(made)
    return made


def nccl() -> Any:
    """CuPy's module of that name, which CuPy does not load itself; None on the CPU, or where CuPy
    finds no NCCL."""
    if current.cuda is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that is missing; the transport is told
        found = importlib.import_module("cupy.cuda.nccl")
    return found if found.available else None


def trim() -> None:
    """Gives memory that no array uses back to the system."""
    host.kernels.trim_memory()
    if current.cuda is not None:
        current.cuda.cupy.get_default_memory_pool().free_all_blocks()


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
