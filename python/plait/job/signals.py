"""Stopping when asked: the first signal finishes the step and saves, a second one ends at once.

Signals are noticed by a thread that sleeps in a pipe, so a second one works while the main thread
waits inside MPI. Those that come before are held back by the system until then.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOPPED = 75  # exit code: stopped with a checkpoint, start again to go on
REPEATED_SECONDS = 1.0  # sooner it is the same: a launcher and a terminal may both deliver one


_held: list[signal.Signals] = []  # those that came before any StopRequest


class StopRequest:
    """Calling it says whether this process was asked to stop; ranks agree by a maximum over all.

    say gets a line at the first signal. at_once is called, in another thread, at the second.
    asked: whether somebody asked without a signal, which then counts as the first.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        at_once: Callable[[], None],
        asked: Callable[[], bool] = lambda: False,
    ):
        self._say, self._at_once, self._asked = say, at_once, asked
        self._first: float | None = None

    def __call__(self) -> bool:
        return self._first is not None or self._asked()

    def __enter__(self) -> "StopRequest":
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # first the pipe: a signal that comes while the handlers change is noticed there
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, _nothing) for number in heeded()}
        self._thread = threading.Thread(target=self._watch, args=(read,), daemon=True)
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for number in _held[:1]:
            self._received(number, time.monotonic())
        _held.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self._write)
        self._thread.join()

    def _watch(self, read: int) -> None:
        while numbers := os.read(read, 1):
            if numbers[0] in SIGNALS:
                self._received(signal.Signals(numbers[0]), time.monotonic())
        os.close(read)

    def _received(self, number: signal.Signals, now: float) -> None:
        if not self():
            self._first = now
            self._say(told(number))
        elif self._first is None or now - self._first >= REPEATED_SECONDS:
            self._at_once()


def heeded() -> list[signal.Signals]:
    """The signals that stop a run; nohup takes one of them out."""
    return [
        number
        for number in SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]


def hold_signals() -> None:
    """Signals wait from here on, until a StopRequest takes them up: MPI's start takes seconds, in
    which they would end this process, and with it all ranks. A thread that was there before is not
    kept from them: what it gets is remembered."""
    for number in heeded():
        signal.signal(number, _remember)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def ignore_signals() -> None:
    """For the last moments of a process whose exit code is known: a launcher that ends all ranks
    once the first has left with a code must not turn the others' codes into "terminated"."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def told(number: int) -> str:
    """What is said at the first signal."""
    name = signal.Signals(number).name
    return f"{name}: stopping after this step with a checkpoint; once more: at once"


def _remember(number: int, frame: FrameType | None) -> None:
    _held.append(signal.Signals(number))


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler must be there for the pipe to be written."""
