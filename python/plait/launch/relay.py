"""What the ranks print, passed on: their pipes have a reader to the end, whoever reads ours."""

import os
import sys
import threading
from typing import IO, TextIO

_BLOCK = 1 << 16


class Relay:
    """Threads that copy a process's pipes to this process's standard streams."""

    def __init__(self, out: IO[bytes], err: IO[bytes]) -> None:
        self._threads = [
            threading.Thread(target=_copy, args=pair, daemon=True)
            for pair in ((out, sys.stdout), (err, sys.stderr))
        ]
        for thread in self._threads:
            thread.start()

    def finish(self, seconds: float) -> None:
        """Waits for the last words of processes that have ended."""
        for thread in self._threads:
            thread.join(seconds)


def _copy(source: IO[bytes], target: TextIO) -> None:
    with source:
        while block := os.read(source.fileno(), _BLOCK):
            target.buffer.write(block)
            target.buffer.flush()
