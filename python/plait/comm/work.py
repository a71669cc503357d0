"""Started collectives, and the loop that advances all of them.

A Work runs a generator that yields polls: a poll returns True once what it waits for is there.
Every wait advances every Work of the process, on whatever communicator: a collective of two stages
moves on while its rank waits for something else, so two ranks that wait in different communicators
cannot hold each other up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Poll = Callable[[], bool]
Steps = Generator[Poll, None, Any]


class Turns:
    """Lets the stages of several collectives run in the order in which these were started."""

    def __init__(self) -> None:
        self._taken = self.now = 0

    def take(self) -> int:
        self._taken += 1
        return self._taken - 1


class _Clock:
    """Counts the time spent inside of it, however deep."""

    def __init__(self) -> None:
        self.seconds = self._begin = 0.0
        self._depth = 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._begin = time.perf_counter()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._begin


_clock = _Clock()


def communication_seconds() -> float:
    """What this process has spent so far on starting collectives, moving them along and waiting for
    them, instead of computing."""
    return _clock.seconds


# Progress belongs to the process, as it does inside MPI: started Works in order of their start.
_active: list[Work] = []


class Work:
    """The handle of a started collective. It holds the buffers until it is done."""

    __slots__ = ("_error", "_poll", "_result", "_steps", "name")

    def __init__(self, name: str, steps: Steps):
        self.name = name
        self._steps: Steps | None = steps
        self._poll: Poll | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        with _clock:
            self._advance()
        if self._steps is not None:
            _active.append(self)

    def test(self) -> bool:
        """True if the result is there; advances what is under way."""
        progress()
        return self._steps is None

    def wait(self) -> Any:
        """The result of the collective, once it is there. May be called again."""
        if self._steps is not None:
            with _clock:
                _wait(self)
        if self._error is not None:
            raise self._error
        return self._result

    def _advance(self) -> None:
        steps = self._steps
        assert steps is not None
        try:
            while self._poll is None or self._poll():
                self._poll = next(steps)
        except StopIteration as stop:
            self._finish(stop.value, None)
        except BaseException as error:
            self._finish(None, error)
            raise

    def _finish(self, result: Any, error: BaseException | None) -> None:
        self._steps = self._poll = None
        self._result, self._error = result, error


def finished(result: Any) -> Work:
    """A Work that is done already."""

    def steps() -> Steps:
        return result
        yield  # never reached: it makes this a generator

    return Work("finished", steps())


def pending() -> list[str]:
    """Names of the collectives under way, the oldest first (for reports of a hang)."""
    return [work.name for work in _active]


def progress() -> None:
    """Advances every Work of this process as far as it goes without waiting."""
    if not _active:
        return
    try:
        with _clock:
            for work in tuple(_active):
                if work._steps is not None:
                    work._advance()
    finally:
        _active[:] = [work for work in _active if work._steps is not None]


# More ranks than cores on this node: waits then sleep, so that whoever computes gets the core.
_crowded = False
_PATIENCE = 50e-6  # seconds of yielding before the first sleep
_CONTENDED = 50e-6  # a yield that takes this long gave the core to somebody who had use for it
_NAP, _LONGEST_NAP = 20e-6, 1e-3
_SPIN_US = 20  # that a poll may spin while its rank waits and has a core of its own
_spin_us = 0


def set_crowded() -> None:
    global _crowded
    _crowded = True


def spin_us() -> int:
    """Microseconds that a poll may spin: none while its rank has something else to do."""
    return _spin_us


def _wait(work: Work) -> None:
    """Polls, giving the core away in between.

    With a core for every rank a sleep would only stall transfers, which move while their rank
    polls. With fewer cores, or other programs on them, yields alone would leave the computing ranks
    their fair share of cores that are mostly spent on polling, and whoever sleeps is run at once
    when it wakes.
    """
    global _spin_us
    start, sleeps = 0.0, _crowded
    while True:
        _spin_us = 0 if sleeps or len(_active) > 1 else _SPIN_US
        try:
            progress()
        finally:
            _spin_us = 0
        if work._steps is None:
            return
        before = time.perf_counter()
        start = start or before
        os.sched_yield()
        if not sleeps:
            sleeps = time.perf_counter() - before > _CONTENDED
        elif before - start > _PATIENCE:
            time.sleep(min(max(_NAP, (before - start) / 8), _LONGEST_NAP))
