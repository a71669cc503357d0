"""Waiting for the device in use, while what must not stand still goes on."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from plait.backend import current


class Watch(Protocol):
    """What must be looked after while the host waits for the device."""

    def look(self) -> None:
        """Takes microseconds; raises if what the device waits for will never come."""


_NOT_READY = 600  # cudaErrorNotReady
_watches: weakref.WeakSet[Watch] = weakref.WeakSet()


def watch(each: Watch) -> None:
    """each.look() is called whenever the host waits for the device, as long as there is an each."""
    _watches.add(each)


def done() -> bool:
    """Whether the device has done all that it was told. CuPy's error if it cannot any more."""
    if current.cuda is None:
        return True
    stream = current.cuda.stream
    return _ended(current.cuda.cupy.cuda.runtime.streamQuery(stream.ptr), stream)


def mark() -> Callable[[], bool]:
    """Tells whether the device has done what it was told until now."""
    if current.cuda is None:
        return done
    event = current.cuda.cupy.cuda.Event(disable_timing=True)
    event.record(current.cuda.stream)
    query = current.cuda.cupy.cuda.runtime.eventQuery
    return lambda: _ended(query(event.ptr), event)


def _ended(code: int, what: Any) -> bool:
    """CuPy's `done` is False for ever after an error, such as an illegal address in a kernel."""
    if code not in (0, _NOT_READY):
        what.synchronize()  # it raises what went wrong
        raise RuntimeError(f"the device answers with CUDA error {code}")
    return code == 0


def synchronize() -> None:
    """As wait(), but everything else stands still."""
    if current.cuda is not None:
        current.cuda.stream.synchronize()


def wait() -> None:
    """Until done(). A kernel may wait for a peer that waits for this host: all that is watched goes
    on meanwhile."""
    if current.cuda is None or not _watches:
        return  # whatever waits for the stream itself does that best
    while not done():
        _look()
        os.sched_yield()
    _look()


def _look() -> None:
    for each in tuple(_watches):
        each.look()


def check_faults() -> None:
    """ValueError for what a kernel found wrong in its data, such as a target beyond the
    vocabulary; the CPU's kernels say so at once."""
    if current.cuda is not None:
        wait()
        current.cuda.kernels.check_faults()


def stream() -> int:
    """The address of the CUDA stream that everything runs on; 0 on the CPU."""
    return 0 if current.cuda is None else int(current.cuda.stream.ptr)
