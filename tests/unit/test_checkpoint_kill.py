"""A save killed anywhere leaves a whole checkpoint: SIGKILL at lines all through the save."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from fake_ranks import Ranks

from plait import checkpoint
from plait.checkpoint import Piece, Reader, latest, save

POINTS = 40


def values(step: int) -> np.ndarray:
    return np.arange(500, dtype=np.float32) * step


def save_step(folder: Path, step: int) -> None:
    pieces = [
        Piece("a", "master", (25, 20), 0, values(step)[:300]),
        Piece("a", "master", (25, 20), 300, values(step)[300:]),
        Piece("b", "first", (500,), 0, -values(step)),
    ]
    save(folder, step, pieces, Ranks(), metadata={"step": step}, keep=1)


def traced(body: Callable[[], None], at: int) -> int:
    """Runs body and kills this process at its at-th line within the package; returns the lines."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if f"{os.sep}plait{os.sep}" not in frame.f_code.co_filename:
            return trace if "shutil" in frame.f_code.co_filename else None
        lines += event == "line"
        if event == "line" and lines == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    try:
        body()
    finally:
        sys.settrace(None)
    return lines


def in_child(body: Callable[[], Any]) -> int:
    """The wait status of a forked process that runs body."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside the threads of numpy's BLAS
        child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("before", [50, 100], ids=["next step", "same step"])
def test_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    monkeypatch.setattr(checkpoint.shard, "CHUNK", 256)
    for name in ("first", "count"):  # the first save does what is done once in a process
        save_step(tmp_path / name, before)
        total = traced(partial(save_step, tmp_path / name, 100), 0)
    assert total > POINTS
    seen = set()
    for point in np.linspace(1, total, POINTS).astype(int):
        folder = tmp_path / str(point)
        save_step(folder, before)
        status = in_child(partial(traced, partial(save_step, folder, 100), point))
        assert os.WIFSIGNALED(status)
        checkpoint.clean(folder)
        path = latest(folder)
        assert path is not None, f"nothing left after a kill at line {point} of {total}"
        seen.add(path.name)
        reader = Reader(path)
        assert np.array_equal(reader.read("a"), values(reader.step))
        assert np.array_equal(reader.read("b", "first"), -values(reader.step))
        save_step(folder, 150)
        assert [p.name for p in folder.iterdir()] == ["step-00000150"]
    assert seen == {f"step-{before:08d}", "step-00000100"}
