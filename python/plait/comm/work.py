"""Started collectives, and the loop that advances all of them.

A Work runs a generator that yields polls: a poll returns True once what it waits for is there.
Every wait advances every Work of the process, on whatever communicator: a collective of two stages
moves on while its rank waits for something else, so two ranks that wait in different communicators
cannot hold each other up.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from numpy.typing import NDArray

from plait.backend.host import kernels

Array = NDArray[Any]
Poll = Callable[[], bool]
Steps = Iterable[Poll]


class Quick(ABC):
    """Steps of one call into a transport, which can be made without a Work where nothing else is
    under way. They can be taken as often as wanted.

    reads: the arrays whose elements they take. quick() does all of it, waiting for some
    microseconds, and is False if something is left.
    """

    __slots__ = ()
    reads: tuple[Array, ...]
    quick: Callable[[], bool]

    @abstractmethod
    def __iter__(self) -> Iterator[Poll]: ...

    @abstractmethod
    def rest(self) -> Steps:
        """What quick() has left."""


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
    return _clock.seconds + float(kernels.run_seconds())


# Progress belongs to the process, as it does inside MPI: started Works in order of their start. It
# stays the same list.
active: list[Work] = []


class Work:
    """The handle of a started collective. It holds the buffers until it is done."""

    __slots__ = ("_error", "_moving", "_poll", "_result", "_steps", "_then", "name")

    def __init__(self, name: str, steps: Steps, result: Any = None):
        self.name = name
        self._steps: Iterator[Poll] | None = iter(steps)
        self._poll: Poll | None = None
        self._result = result
        self._error: BaseException | None = None
        self._moving = False
        self._then: Callable[[Any], Any] | None = None
        with _clock:
            self._advance()
        if self._steps is not None:
            active.append(self)

    def test(self) -> bool:
        """True if the result is there; advances what is under way."""
        progress()
        return self._steps is None

    def done(self) -> bool:
        """As test(), for a poll of another Work: advances nothing."""
        return self._steps is None

    def wait(self) -> Any:
        """The result of the collective, once it is there. May be called again."""
        if self._steps is not None:
            with _clock:
                _wait(self)
        if self._error is not None:
            raise self._error
        if self._then is not None:
            self._result, self._then = self._then(self._result), None
        return self._result

    def then(self, last: Callable[[Any], Any]) -> None:
        """wait() gives last(result)."""
        self._then = last

    def _advance(self) -> None:
        if self._moving:  # a step of its own waits for the device, and moves the others meanwhile
            return
        steps = self._steps
        assert steps is not None
        self._moving = True
        try:
            while self._poll is None or self._poll():
                self._poll = next(steps)
        except StopIteration:
            self._steps = self._poll = None
        except BaseException as error:
            self._steps = self._poll = None
            self._error = error
            if isinstance(steps, Generator):
                steps.close()  # a poll failed: its generator has not heard of it
            if not isinstance(error, kernels.Disagreement):  # which its own wait() tells, no other
                raise
        finally:
            self._moving = False


def finished(result: Any) -> Work:
    """A Work that is done already."""
    return Work("finished", (), result)


def run(name: str, steps: Steps, result: Any) -> Any:
    """The result, once the steps are done."""
    if active or not isinstance(steps, Quick):
        return Work(name, steps, result).wait()
    if not steps.quick():
        finish(name, steps)
    return result


def finish(name: str, steps: Quick) -> None:
    """Waits for the rest of quick steps."""
    Work(name, steps.rest()).wait()


def pending() -> list[str]:
    """Names of the collectives under way, the oldest first (for reports of a hang)."""
    return [work.name for work in active]


def progress() -> None:
    """Advances every Work of this process as far as it goes without waiting."""
    if not active:
        return
    try:
        with _clock:
            for work in tuple(active):
                if work._steps is not None:
                    work._advance()
    finally:
        active[:] = [work for work in active if work._steps is not None]


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


def quick_us() -> int:
    """Microseconds that a rank may spin when nothing else is under way."""
    return 0 if _crowded else _SPIN_US


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
        _spin_us = 0 if sleeps or len(active) > 1 else _SPIN_US
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
