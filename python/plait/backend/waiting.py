"""Waiting for the device in use, while what must not stand still goes on."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Protocol

from plait.backend import current


class Watch(Protocol):
    """What must be looked after while the host waits for the device."""

    def look(self) -> None:
        """Takes microseconds; raises if what the device waits for will never come."""


_watches: weakref.WeakSet[Watch] = weakref.WeakSet()


def watch(each: Watch) -> None:
    """each.look() is called whenever the host waits for the device, as long as there is an each."""
    _watches.add(each)


def done() -> bool:
    """Whether the device has done all that it was told."""
    return current.cuda is None or bool(current.cuda.stream.done)


def mark() -> Callable[[], bool]:
    """Tells whether the device has done what it was told until now."""
    if current.cuda is None:
        return done
    event = current.cuda.cupy.cuda.Event(disable_timing=True)
    event.record(current.cuda.stream)
    return lambda: bool(event.done)


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
