"""Files that MPICH's mpiexec leaves in /tmp: those of our job go, those of other jobs stay."""

import os
import time
from pathlib import Path

import pytest

from plait.launch import hydra


@pytest.mark.parametrize(("age", "stays"), [(0.5, True), (9999.0, False)])
def test_what_no_job_that_just_started_may_read_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, stays: bool
) -> None:
    monkeypatch.setattr(hydra, "_FOLDER", tmp_path)
    monkeypatch.setattr(hydra, "_proxy_starts", lambda: [time.time() - age])
    old, new = (tmp_path / f"{hydra._PREFIX}{end}" for end in ("old", "new"))
    foreign = tmp_path / "notes"
    old.touch()
    before = hydra.hydra_files()
    new.touch()
    foreign.touch()
    hydra.remove_hydra_files(before)
    assert old.exists()
    assert foreign.exists()
    assert new.exists() == stays


def test_when_a_proxy_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0]
    monkeypatch.setattr(hydra, "_PROXY", os.path.basename(own))
    before = time.time() + 1
    assert any(before - 86400 < start < before for start in hydra._proxy_starts())
