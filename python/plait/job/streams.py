"""Standard streams that outlive their readers: writing never raises, and what was lost is known.

A terminal that is closed or a `| tee` that dies must not end a run; a result that could not be
written must not look like one that was.
"""

import io
import os
import sys
from typing import Any, TextIO


class _Lasting(io.FileIO):
    """The file of a descriptor; lost is the first error, and nothing is written after it."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


def make_streams_last() -> None:
    """From here on sys.stdout and sys.stderr never raise. Descriptors that are closed are opened,
    or the next file would become standard error: output counts as lost, messages go nowhere."""
    for number in (0, 1, 2):
        if not _is_open(number):
            place = os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
            if place != number:
                os.dup2(place, number)
                os.close(place)
            os.set_inheritable(number, True)
    sys.stdout = _lasting(sys.stdout, 1)
    sys.stderr = _lasting(sys.stderr, 2)


def output_lost() -> OSError | None:
    """Why not all of standard output was written, if so."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, _Lasting) else None


def tell(text: str) -> None:
    """Writes to standard error in one piece, so that lines of ranks do not mix; never raises."""
    try:
        os.write(2, text.encode(errors="backslashreplace"))
    except OSError:
        return


def _lasting(stream: TextIO | None, number: int) -> TextIO:
    if stream is not None and not isinstance(stream, io.TextIOWrapper):
        return stream  # somebody's own
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "w", closefd=False)),
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="backslashreplace",  # for what the terminal's encoding has no character
        line_buffering=stream.line_buffering if stream is not None else True,
        write_through=stream.write_through if stream is not None else False,
    )


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
