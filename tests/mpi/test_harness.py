"""The harness tells which rank failed and where, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from harness import Case, Outcome, run_cases

CASES = """
import ctypes
import numpy as np
from harness import case

@case(2)
def before(world):
    assert world.all_reduce(np.ones(3, np.float32)).tolist() == [2, 2, 2]

@case(2)
def raises(world):
    if world.rank == 1:
        raise KeyError("the rank's own words")
    world.barrier()

@case(2, limit=2.0)
def hangs(world):
    if world.rank == 0:
        world.barrier()

@case(2)
def crashes(world):
    if world.rank == 1:
        ctypes.string_at(0)
    world.barrier()

@case(2)
def after(world):
    world.barrier()
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    folder = tmp_path_factory.mktemp("cases")
    (folder / "cases_own.py").write_text(CASES)
    shared = harness._shared_memory()
    names = ("before", "raises", "hangs", "crashes", "after")
    limit = {"hangs": 2.0}
    cases = [Case(f"own.{name}", 2, print, limit.get(name, 120.0)) for name in names]
    yield run_cases(cases, folder)
    assert harness._shared_memory() == shared


def test_a_failure_does_not_touch_the_cases_around_it(outcomes: dict[str, Outcome]) -> None:
    passed = [name for name, outcome in outcomes.items() if outcome.passed]
    assert passed == ["own.before", "own.after"]


def test_an_exception_is_reported_with_rank_and_traceback(outcomes: dict[str, Outcome]) -> None:
    report = outcomes["own.raises"].report
    assert "[rank 1] Traceback" in report
    assert "the rank's own words" in report
    assert "[rank 0] Traceback" not in report


def test_a_hang_shows_where_ranks_wait(outcomes: dict[str, Outcome]) -> None:
    # The first rank whose time is out ends the others, perhaps before they have written.
    report = outcomes["own.hangs"].report
    assert any(f"[rank {rank}] died or was out of time (2.0 s)" in report for rank in (0, 1))
    assert "in barrier" in report


def test_a_crash_shows_where(outcomes: dict[str, Outcome]) -> None:
    report = outcomes["own.crashes"].report
    assert "[rank 1] died" in report
    assert "string_at" in report


def test_what_is_left_of_a_run_is_ended(tmp_path: Path) -> None:
    code = "import time; time.sleep(600)"
    mark = f"left-{tmp_path.name}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={"PLAIT_TEST_RUN": mark}, start_new_session=True
    )
    harness._end(process, mark)
    assert process.wait() < 0
    assert harness._marked(mark) == []


def test_a_case_that_all_ranks_came_through_passed(tmp_path: Path) -> None:
    """Even where the next one ended a rank before it had written so."""
    events = [
        [("started", "a"), ("passed", "a"), ("started", "b"), ("failed", "b")],
        [("started", "a")],
    ]
    for rank, own in enumerate(events):
        lines = [
            json.dumps({"event": event, "case": name, "seconds": 1.0, "traceback": "its own"})
            for event, name in own
        ]
        (tmp_path / f"events.{rank}").write_text("\n".join([*lines, ""]))
    cases = [Case(name, 2, print, 1.0) for name in "abc"]
    found = harness._outcomes(cases, tmp_path, "", 3)
    assert {name: outcome.passed for name, outcome in found.items()} == {"a": True, "b": False}
    assert "[rank 0] its own" in found["b"].report
