"""Where a run stands: a moving bar on a terminal, now and then a plain line elsewhere."""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from .screen import Screen
from .text import bytes_text, count_text, time_text

_REFRESH_SECONDS = 0.2
_FIRST_SECONDS, _LAST_SECONDS = 2.0, 30.0  # between plain lines: often at first, then rarely
_BAR_WIDTH = 20
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

    def step(self, done: int, *, loss: float, rate: float, memory_bytes: int) -> None:
        """After each step: finished steps; the rate of all ranks; the memory of this one."""
        if self._screen.file is None:
            return
        now = self._clock()
        self._times.append((now, done))
        wait = _REFRESH_SECONDS if self._screen.live else self._wait
        if now - self._shown < wait and done < self._total:
            return
        if self._shown >= 0:
            self._wait = min(self._wait * 1.25, _LAST_SECONDS)
        self._shown = now
        parts = [
            f"step {done}/{self._total}",
            f"loss {loss:.4f}",
            f"{count_text(rate)} {self._unit}",
            bytes_text(memory_bytes),
            f"{time_text(self._seconds_left(done))} left",
        ]
        text = "  ".join(parts)
        if self._screen.live:
            room = min(_BAR_WIDTH, self._screen.width - len(text) - 2)
            self._screen.move(f"{_bar(done / max(self._total, 1), room)}  {text}")
        else:
            self._screen.say(text)

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._screen.say(text)

    def close(self) -> None:
        """Leaves the bar as it stands; later output goes below it."""
        self._screen.rest()

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


def _bar(fraction: float, width: int) -> str:
    full = round(width * min(fraction, 1.0))
    return "━" * full + "┄" * (width - full)
