"""What is said to people: lines on standard error and one line that moves, from rank 0 only."""

import os
import shutil
import sys
from collections.abc import Mapping
from typing import TextIO

_CLEAR = "\r\x1b[K"  # to the start of the line, and empty it


class Screen:
    """Speaks on rank 0, is silent elsewhere. file: standard error unless given."""

    def __init__(self, *, active: bool = True, file: TextIO | None = None):
        self.file = (file or sys.stderr) if active else None
        self.live = self.file is not None and _is_terminal(self.file)
        self._moving = ""

    def say(self, text: str) -> None:
        """Prints text as it is, above the moving line."""
        self._write(f"{_CLEAR}{text}\n{self._moving}" if self._moving else f"{text}\n")

    @property
    def width(self) -> int:
        """How many characters the moving line may have."""
        return shutil.get_terminal_size().columns - 1

    def move(self, text: str) -> None:
        """Replaces the moving line, cut to the width. Only where the screen is live."""
        assert self.live
        self._moving = text[: self.width]
        self._write(_CLEAR + self._moving)

    def rest(self) -> None:
        """Leaves the moving line as it stands; what follows goes below it."""
        if self._moving:
            self._write("\n")
            self._moving = ""

    def header(self, facts: Mapping[str, object]) -> None:
        """The first lines of a run: what -> value, in columns."""
        width = max((len(what) for what in facts), default=0)
        for what, value in facts.items():
            self.say(f"{what:<{width}}  {value}")

    def _write(self, text: str) -> None:
        """Goes silent where the terminal is gone: a run outlives its window."""
        if self.file is None:
            return
        try:
            self.file.write(text)
            self.file.flush()
        except OSError:
            self.file = None


def _is_terminal(file: TextIO) -> bool:
    """TTY_COMPATIBLE is how `plait train --ranks` tells rank 0 of the terminal behind mpiexec."""
    if os.environ.get("TERM") == "dumb":
        return False
    return file.isatty() or os.environ.get("TTY_COMPATIBLE") == "1"
