"""Stopping when asked: one signal sets the request, one that comes later ends at once."""

import os
import signal
import threading

import pytest

from plait.job.signals import REPEATED_SECONDS, StopRequest, heeded, hold_signals


class Heard:
    """What the request said, and whether it wanted to end at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.spoke, self.ended = threading.Event(), threading.Event()

    def request(self) -> StopRequest:
        return StopRequest(self.say, self.ended.set)

    def say(self, text: str) -> None:
        self.lines.append(text)
        self.spoke.set()


@pytest.mark.parametrize("number", heeded())
def test_a_signal_is_noticed(number: signal.Signals) -> None:
    heard, before = Heard(), signal.getsignal(number)
    with heard.request() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert heard.spoke.wait(30)
        assert stop()
    assert heard.lines[0].startswith(f"{number.name}: stopping after this step")
    assert signal.getsignal(number) == before
    assert stop(), "the request outlives the handlers"
    assert not heard.ended.is_set()


def test_it_is_noticed_while_the_main_thread_waits() -> None:
    """No line of Python runs in a thread that waits for a lock, as in one that waits in MPI."""
    heard, lock = Heard(), threading.Lock()
    lock.acquire()
    with heard.request():
        killer = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM))
        releaser = threading.Thread(target=lambda: (heard.spoke.wait(30), lock.release()))
        releaser.start()
        killer.start()
        assert lock.acquire(timeout=30)
        killer.join()
        releaser.join()
    assert heard.spoke.is_set()


def test_a_signal_that_came_before_is_noticed() -> None:
    """In this process other threads are there already, which the system does not hold it from."""
    before = {number: signal.getsignal(number) for number in heeded()}
    try:
        for _ in range(100):  # it may come at any line of what takes it up
            heard = Heard()
            hold_signals()
            os.kill(os.getpid(), signal.SIGUSR1)
            with heard.request() as stop:
                assert heard.spoke.wait(30)
                assert stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_request_without_a_signal_counts_as_the_first() -> None:
    heard, asked = Heard(), [False]
    stop = StopRequest(heard.say, heard.ended.set, lambda: asked[0])
    assert not stop()
    asked[0] = True
    assert stop()
    stop._received(signal.SIGTERM, 100.0)
    assert heard.ended.is_set()


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in heeded()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_counts_when_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    stop = heard.request()
    stop._received(signal.SIGINT, 100.0)
    stop._received(signal.SIGINT, 100.0 + REPEATED_SECONDS / 2)
    assert not heard.ended.is_set(), "delivered twice: by the terminal and by the launcher"
    assert len(heard.lines) == 1
    stop._received(signal.SIGTERM, 100.0 + REPEATED_SECONDS)
    assert heard.ended.is_set()
