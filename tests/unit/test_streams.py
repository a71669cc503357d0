"""Standard streams: a reader that left, a full disk, a closed descriptor, a poor encoding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")


def run(code: str, **streams: object) -> "subprocess.CompletedProcess[bytes]":
    start = "import sys\nfrom plait.job.streams import make_streams_last, output_lost\n"
    start += "make_streams_last()\n"
    command = [sys.executable, "-c", start + code]
    return subprocess.run(command, timeout=60, **streams)  # type: ignore[call-overload, no-any-return]


def gone() -> int:
    """A pipe whose reader has left."""
    read, write = os.pipe()
    os.close(read)
    return write


def test_writing_to_nobody_does_not_raise() -> None:
    pipe = gone()
    code = "for _ in range(9): print('x' * 9999); print('y' * 9999, file=sys.stderr, flush=True)\n"
    done = run(code + "sys.exit(5 if output_lost().errno == 32 else 1)", stdout=pipe, stderr=pipe)
    os.close(pipe)
    assert done.returncode == 5


def test_closed_streams_are_opened() -> None:
    """A file that a run opens must not become its standard error."""
    code = (
        "import os\nfile = open(os.devnull)\nassert file.fileno() > 2\n"
        "print('x'); print('y', file=sys.stderr)\nsys.exit(5 if output_lost() else 1)"
    )
    start = "import os, sys; [os.close(n) for n in (0, 1, 2)]; os.execv(sys.argv[1], sys.argv[1:])"
    text = f"from plait.job.streams import *; import sys; make_streams_last()\n{code}"
    command = [sys.executable, "-c", start, sys.executable, "-c", text]
    assert subprocess.run(command, timeout=60).returncode == 5


def test_what_an_encoding_has_not_is_replaced() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from plait.cli import main; main(['--version']); print('a\\u4e2d')",
        ],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == b"a\\u4e2d"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_result_that_is_lost_is_an_error() -> None:
    with FULL.open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "plait", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr == (
        "plait: standard output cannot be written (No space left on device): "
        "the result is lost or cut short\n"
    )
