"""Files that MPICH's mpiexec leaves in /tmp: those of our job go, others stay."""

from pathlib import Path

import pytest

from plait.launch import hydra


@pytest.mark.parametrize("other_job", [False, True])
def test_files_of_this_job_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_job: bool
) -> None:
    monkeypatch.setattr(hydra, "_FOLDER", tmp_path)
    monkeypatch.setattr(hydra, "_proxy_runs", lambda: other_job)
    old, new = (tmp_path / f"{hydra._PREFIX}{end}" for end in ("old", "new"))
    foreign = tmp_path / "notes"
    old.touch()
    before = hydra.hydra_files()
    new.touch()
    foreign.touch()
    hydra.remove_hydra_files(before)
    assert old.exists()
    assert foreign.exists()
    assert new.exists() == other_job
