"""Where a run stands: a moving bar on a terminal, now and then a plain line elsewhere."""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from .screen import Screen
from .text import bytes_text, count_text, time_text

if TYPE_CHECKING:
    import rich.progress

_REFRESH_SECONDS = 0.2
_FIRST_SECONDS, _LAST_SECONDS = 2.0, 30.0  # between plain lines: often at first, then rarely
_WINDOW = 50  # steps that the time left is guessed from


class Progress:
    """Shows steps up to `total`, of which `done` are done already.

    No thread: the screen changes only in `step`, so a bar that stands still means a run that does.
    unit: of the rate, "tokens/s" or "samples/s".
    """

    def __init__(
        self,
        screen: Screen,
        total: int,
        *,
        done: int = 0,
        unit: str = "tokens/s",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._screen, self._total, self._unit, self._clock = screen, total, unit, clock
        self._times: deque[tuple[float, int]] = deque([(clock(), done)], maxlen=_WINDOW + 1)
        self._shown, self._wait = float("-inf"), _FIRST_SECONDS
        self._bar: rich.progress.Progress | None = None
        if screen.live:
            self._bar = _bar(screen)
            self._task = self._bar.add_task("", total=total, completed=done, text="")
            self._bar.start()

    def step(self, done: int, *, loss: float, rate: float, memory_bytes: int) -> None:
        """After each step: finished steps; the rate of all ranks; the memory of this one."""
        if self._screen.console is None:
            return
        now = self._clock()
        self._times.append((now, done))
        wait = _REFRESH_SECONDS if self._bar else self._wait
        if now - self._shown < wait and done < self._total:
            return
        if self._bar is None and self._shown >= 0:
            self._wait = min(self._wait * 1.25, _LAST_SECONDS)
        self._shown = now
        parts = [
            f"step {done}/{self._total}",
            f"loss {loss:.4f}",
            f"{count_text(rate)} {self._unit}",
            bytes_text(memory_bytes),
            f"{time_text(self._seconds_left(done))} left",
        ]
        if self._bar:
            with self._screen.tolerant():
                self._bar.update(self._task, completed=done, text="  ".join(parts), refresh=True)
        else:
            self._screen.say("  ".join(parts))

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._screen.say(text)

    def close(self) -> None:
        """Leaves the bar as it stands; later output goes below it."""
        if self._bar:
            with self._screen.tolerant():
                self._bar.stop()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _seconds_left(self, done: int) -> float:
        (then, first), (now, _) = self._times[0], self._times[-1]
        return (now - then) / (done - first) * (self._total - done) if done > first else 0.0


def _bar(screen: Screen) -> "rich.progress.Progress":
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=20), TextColumn("{task.fields[text]}", markup=False))
    return Progress(*columns, console=screen.console, auto_refresh=False)
